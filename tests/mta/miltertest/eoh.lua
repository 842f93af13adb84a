-- xxfi_eoh: its answer.
local check = dofile(folder .. "/check.lua")
local connection = check.up_to("header")
check.done(mt.eoh(connection))
check.reply(connection, expected)
mt.disconnect(connection)
