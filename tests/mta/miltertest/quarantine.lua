-- smfi_quarantine.
local check = dofile(folder .. "/check.lua")
local connection = check.message()
check.that(mt.test_action(connection, SMFIF_QUARANTINE), "SMFIF_QUARANTINE not asked for")
check.that(mt.eom_check(connection, MT_QUARANTINE, "looks odd"), "not quarantined")
mt.disconnect(connection)
