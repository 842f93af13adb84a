-- smfi_addrcpt.
local check = dofile(folder .. "/check.lua")
local connection = check.message()
check.that(mt.test_action(connection, SMFIF_ADDRCPT), "SMFIF_ADDRCPT not asked for")
check.that(mt.eom_check(connection, MT_RCPTADD, "<new@sink.example>"), "not added")
check.that(not mt.eom_check(connection, MT_RCPTADD, "<rcpt@sink.example>"), "one too many")
mt.disconnect(connection)
