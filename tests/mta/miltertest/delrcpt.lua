-- smfi_delrcpt.
local check = dofile(folder .. "/check.lua")
local connection = check.message()
check.that(mt.test_action(connection, SMFIF_DELRCPT), "SMFIF_DELRCPT not asked for")
check.that(mt.eom_check(connection, MT_RCPTDELETE, "<rcpt@sink.example>"), "not deleted")
mt.disconnect(connection)
