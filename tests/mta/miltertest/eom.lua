-- xxfi_eom: its answer, and no edits.
local check = dofile(folder .. "/check.lua")
local connection = check.message()
local kinds = {
    MT_HDRADD, MT_HDRINSERT, MT_HDRCHANGE, MT_HDRDELETE, MT_BODYCHANGE, MT_QUARANTINE,
}
for _, kind in ipairs(kinds) do
    check.that(not mt.eom_check(connection, kind), "an edit of kind " .. kind)
end
for _, kind in ipairs({ MT_RCPTADD, MT_RCPTDELETE }) do
    check.that(not mt.eom_check(connection, kind, "<rcpt@sink.example>"), "a recipient changed")
end
mt.disconnect(connection)
