-- xxfi_body: many chunks.
local check = dofile(folder .. "/check.lua")
local connection = check.up_to("eoh")
check.continue(connection, mt.bodyrandom(connection, 300000))
check.done(mt.eom(connection))
check.reply(connection, expected)
mt.disconnect(connection)
