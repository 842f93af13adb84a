-- smfi_setmlreply.
local check = dofile(folder .. "/check.lua")
local connection = check.message()
local text = "553-5.7.2 No mail\r\n553-5.7.2 today\r\n553 5.7.2 sorry"
check.that(mt.eom_check(connection, MT_SMTPREPLY, text), "other text")
mt.disconnect(connection)
