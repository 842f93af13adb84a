-- xxfi_header: its answer.
local check = dofile(folder .. "/check.lua")
local connection = check.up_to("data")
check.done(mt.header(connection, "Subject", "A folded\n\tvalue"))
check.reply(connection, expected)
mt.disconnect(connection)
