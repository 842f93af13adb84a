/*
 * A milter with libmilter. The same is in pymilter_way.py and yatxmilter_way.py.
 *
 *     cc -o counter libmilter.c -lmilter -lpthread && ./counter SOCKET
 */

#include <libmilter/mfapi.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static sfsistat on_envfrom(SMFICTX *ctx, char **argv)
{
    static const char spam[] = "@spam.example>";
    size_t length = strlen(argv[0]), end = sizeof spam - 1;
    size_t *octets = smfi_getpriv(ctx);

    if (octets == NULL) {
        octets = malloc(sizeof *octets);
        if (octets == NULL)
            return SMFIS_TEMPFAIL;
        smfi_setpriv(ctx, octets);
    }
    *octets = 0;
    if (length >= end && strcmp(argv[0] + length - end, spam) == 0) {
        smfi_setreply(ctx, "550", "5.7.1", "not from you");
        return SMFIS_REJECT;
    }
    return SMFIS_CONTINUE;
}

static sfsistat on_envrcpt(SMFICTX *ctx, char **argv)
{
    if (strcmp(argv[0], "<nobody@example.com>") == 0) {
        smfi_setreply(ctx, "550", "5.1.1", "nobody lives here");
        return SMFIS_REJECT;
    }
    return SMFIS_CONTINUE;
}

static sfsistat on_body(SMFICTX *ctx, unsigned char *bodyp, size_t len)
{
    (void)bodyp;
    *(size_t *)smfi_getpriv(ctx) += len;
    return SMFIS_CONTINUE;
}

static sfsistat on_eom(SMFICTX *ctx)
{
    char text[32];

    snprintf(text, sizeof text, "%zu", *(size_t *)smfi_getpriv(ctx));
    smfi_addheader(ctx, "X-Octets", text);
    return SMFIS_CONTINUE;
}

static sfsistat on_close(SMFICTX *ctx)
{
    free(smfi_getpriv(ctx));
    smfi_setpriv(ctx, NULL);
    return SMFIS_CONTINUE;
}

int main(int argc, char **argv)
{
    struct smfiDesc milter = {
        .xxfi_name = "counter",
        .xxfi_version = SMFI_VERSION,
        .xxfi_flags = SMFIF_ADDHDRS,
        .xxfi_envfrom = on_envfrom,
        .xxfi_envrcpt = on_envrcpt,
        .xxfi_body = on_body,
        .xxfi_eom = on_eom,
        .xxfi_close = on_close,
    };

    if (argc != 2 || smfi_setconn(argv[1]) != MI_SUCCESS || smfi_register(milter) != MI_SUCCESS)
        return 64;
    return smfi_main() == MI_SUCCESS ? 0 : 70;
}
