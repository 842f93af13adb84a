-- smfi_setreply.
local check = dofile(folder .. "/check.lua")
local connection = check.message()
check.that(mt.eom_check(connection, MT_SMTPREPLY, "553", "5.7.2", "No mail today"), "other text")
mt.disconnect(connection)
