-- xxfi_body: its answer.
local check = dofile(folder .. "/check.lua")
local connection = check.up_to("eoh")
check.done(mt.bodystring(connection, "A body\r\n"))
check.reply(connection, expected)
mt.disconnect(connection)
