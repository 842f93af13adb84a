/*
 * The benchmark's milter on C libmilter: every callback registered, each reads its arguments.
 */
#include <libmilter/mfapi.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static volatile unsigned long seen; /* what was read, so that reading is not optimised away */
static int add_header, milliseconds, no_reply;

static sfsistat on_connect(SMFICTX *context, char *hostname, _SOCK_ADDR *address)
{
    (void)context;
    seen += strlen(hostname) + (address != NULL);
    return SMFIS_CONTINUE;
}

static sfsistat on_line(SMFICTX *context, char *argument)
{
    (void)context;
    seen += strlen(argument);
    return SMFIS_CONTINUE;
}

static sfsistat on_unknown(SMFICTX *context, const char *argument)
{
    (void)context;
    seen += strlen(argument);
    return SMFIS_CONTINUE;
}

static sfsistat on_arguments(SMFICTX *context, char **argv)
{
    (void)context;
    for (; *argv != NULL; argv++)
        seen += strlen(*argv);
    return SMFIS_CONTINUE;
}

static sfsistat on_header(SMFICTX *context, char *name, char *value)
{
    (void)context;
    seen += strlen(name) + strlen(value);
    return no_reply ? SMFIS_NOREPLY : SMFIS_CONTINUE;
}

static sfsistat on_body(SMFICTX *context, unsigned char *chunk, size_t length)
{
    (void)context;
    seen += length + chunk[0];
    return SMFIS_CONTINUE;
}

static sfsistat on_end(SMFICTX *context)
{
    if (milliseconds)
        usleep(milliseconds * 1000);
    if (add_header && smfi_addheader(context, "X-Bench", "seen") != MI_SUCCESS)
        return SMFIS_TEMPFAIL;
    return SMFIS_CONTINUE;
}

static sfsistat on_anything(SMFICTX *context)
{
    (void)context;
    return SMFIS_CONTINUE;
}

static sfsistat on_negotiate(SMFICTX *context, unsigned long actions, unsigned long steps,
                             unsigned long more, unsigned long most, unsigned long *our_actions,
                             unsigned long *our_steps, unsigned long *our_more,
                             unsigned long *our_most)
{
    (void)context, (void)actions, (void)more, (void)most;
    *our_actions = SMFIF_ADDHDRS;
    *our_steps = no_reply ? steps & SMFIP_NR_HDR : 0;
    *our_more = *our_most = 0;
    return SMFIS_CONTINUE;
}

int main(void)
{
    struct smfiDesc description = {
        "bench", SMFI_VERSION, SMFIF_ADDHDRS, on_connect, on_line, on_arguments, on_arguments,
        on_header, on_anything, on_body, on_end, on_anything, on_anything, on_unknown, on_anything,
        on_negotiate,
    };
    char *listening = getenv("BENCH_LISTEN");
    add_header = atoi(getenv("BENCH_ADD"));
    milliseconds = atoi(getenv("BENCH_WAIT"));
    no_reply = atoi(getenv("BENCH_NOREPLY"));
    if (smfi_setconn(listening) != MI_SUCCESS || smfi_register(description) != MI_SUCCESS)
        return 1;
    smfi_setbacklog(4096);
    return smfi_main() != MI_SUCCESS;
}
