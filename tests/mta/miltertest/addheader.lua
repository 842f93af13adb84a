-- smfi_addheader.
local check = dofile(folder .. "/check.lua")
local connection = check.message()
check.that(mt.test_action(connection, SMFIF_ADDHDRS), "SMFIF_ADDHDRS not asked for")
check.that(mt.eom_check(connection, MT_HDRADD, "X-Added", "value"), "no such header field")
check.that(mt.eom_check(connection, MT_HDRADD, "X-Folded", "one\n\ttwo"), "no folded field")
check.that(mt.getheader(connection, "X-Added", 0) == "value", "another value")
check.that(not mt.eom_check(connection, MT_HDRINSERT), "a field was inserted")
mt.disconnect(connection)
