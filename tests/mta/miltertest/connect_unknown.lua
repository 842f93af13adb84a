-- xxfi_connect: a client of unknown address family.
local check = dofile(folder .. "/check.lua")
local connection = check.connect()
check.done(mt.conninfo(connection, "localhost", "unspec"))
check.reply(connection, expected)
mt.disconnect(connection)
