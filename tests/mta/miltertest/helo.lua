-- xxfi_helo: its answer.
local check = dofile(folder .. "/check.lua")
local connection = check.up_to("connect")
check.done(mt.helo(connection, "client.example.test"))
check.reply(connection, expected)
mt.disconnect(connection)
