-- smfi_progress: each message gives the MTA patience again, which is less than the milter takes.
local check = dofile(folder .. "/check.lua")
mt.set_timeout(2)
local connection = check.message()
check.that(mt.eom_check(connection, MT_HDRADD, "X-Added", "value"), "no such header field")
mt.disconnect(connection)
