-- smfi_insheader.
local check = dofile(folder .. "/check.lua")
local connection = check.message()
check.that(mt.eom_check(connection, MT_HDRINSERT, "X-Top", "value", 0), "nothing at index 0")
check.that(mt.eom_check(connection, MT_HDRINSERT, "X-Fifth", "value", 5), "nothing at index 5")
check.that(not mt.eom_check(connection, MT_HDRADD), "a field was added")
mt.disconnect(connection)
