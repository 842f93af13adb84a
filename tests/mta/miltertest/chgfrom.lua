-- smfi_chgfrom: miltertest has no name for this edit, but keeps step with it.
local check = dofile(folder .. "/check.lua")
local connection = check.message()
check.that(mt.test_action(connection, SMFIF_CHGFROM), "SMFIF_CHGFROM not asked for")
check.that(mt.eom_check(connection, MT_HDRADD, "X-Added", "value"), "the edit after it is lost")
mt.disconnect(connection)
