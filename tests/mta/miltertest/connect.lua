-- xxfi_connect: a client with an IPv4 address, and its answer.
local check = dofile(folder .. "/check.lua")
local connection = check.connect()
check.done(mt.conninfo(connection, "client.example.test", "192.0.2.1"))
check.reply(connection, expected)
mt.disconnect(connection)
