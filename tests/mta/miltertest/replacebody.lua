-- smfi_replacebody.
local check = dofile(folder .. "/check.lua")
local connection = check.message()
check.that(mt.test_action(connection, SMFIF_CHGBODY), "SMFIF_CHGBODY not asked for")
check.that(mt.eom_check(connection, MT_BODYCHANGE, "Another body\r\n"), "another body")
mt.disconnect(connection)
