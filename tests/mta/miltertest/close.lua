-- xxfi_close: the MTA quits between messages.
local check = dofile(folder .. "/check.lua")
local connection = check.message()
mt.disconnect(connection)
