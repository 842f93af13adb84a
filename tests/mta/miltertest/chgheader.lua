-- smfi_chgheader: a value changed, and fields deleted.
local check = dofile(folder .. "/check.lua")
local connection = check.message()
check.that(mt.test_action(connection, SMFIF_CHGHDRS), "SMFIF_CHGHDRS not asked for")
check.that(mt.eom_check(connection, MT_HDRCHANGE, "Subject", "Changed"), "not changed")
check.that(mt.eom_check(connection, MT_HDRDELETE, "X-None"), "not deleted by None")
check.that(mt.eom_check(connection, MT_HDRDELETE, "X-Empty"), "not deleted by an empty value")
check.that(not mt.eom_check(connection, MT_HDRDELETE, "Subject"), "deleted")
mt.disconnect(connection)
