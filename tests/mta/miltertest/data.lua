-- xxfi_data: its answer.
local check = dofile(folder .. "/check.lua")
local connection = check.up_to("envrcpt")
check.done(mt.data(connection))
check.reply(connection, expected)
mt.disconnect(connection)
