-- xxfi_close: the MTA's connection breaks in the middle of a message.
local check = dofile(folder .. "/check.lua")
local connection = check.up_to("body")
mt.disconnect(connection, false)
