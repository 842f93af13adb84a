-- xxfi_connect: a client with an IPv6 address.
local check = dofile(folder .. "/check.lua")
local connection = check.connect()
check.done(mt.conninfo(connection, "client.example.test", "2001:db8::7"))
check.reply(connection, expected)
mt.disconnect(connection)
