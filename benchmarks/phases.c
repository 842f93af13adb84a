/*
 * Lets a Python program tell callgrind what is to be counted, and where one phase ends.
 *
 * Outside of valgrind these do nothing.
 */
#include <valgrind/callgrind.h>

void begin(void)
{
    CALLGRIND_START_INSTRUMENTATION;
}

void end(void)
{
    CALLGRIND_STOP_INSTRUMENTATION;
}

/* Count from now on, or no more. */
void toggle(void)
{
    CALLGRIND_TOGGLE_COLLECT;
}

/* Write what was counted since the last time. */
void dump(const char *name)
{
    CALLGRIND_DUMP_STATS_AT(name);
}
