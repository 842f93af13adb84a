/*
 * A milter made with libmilter that says on standard output what it is called for, and on which
 * of libmilter's contexts. Its answer is always CONTINUE. Its argument is where it listens.
 */
#include <stdio.h>
#include <libmilter/mfapi.h>

static sfsistat say(SMFICTX *ctx, const char *what)
{
	printf("%p %s\n", (void *) ctx, what);
	fflush(stdout);
	return SMFIS_CONTINUE;
}

static sfsistat on_connect(SMFICTX *ctx, char *host, _SOCK_ADDR *address)
{
	return say(ctx, "connect");
}

static sfsistat on_helo(SMFICTX *ctx, char *host)
{
	return say(ctx, "helo");
}

static sfsistat on_envfrom(SMFICTX *ctx, char **argv)
{
	return say(ctx, "envfrom");
}

static sfsistat on_eom(SMFICTX *ctx)
{
	const char *id = smfi_getsymval(ctx, "i");

	smfi_addheader(ctx, "X-Queue-Id", id ? (char *) id : "none");
	return say(ctx, "eom");
}

static sfsistat on_abort(SMFICTX *ctx)
{
	return say(ctx, "abort");
}

static sfsistat on_close(SMFICTX *ctx)
{
	return say(ctx, "close");
}

static struct smfiDesc description = {
	.xxfi_name = "counting",
	.xxfi_version = SMFI_VERSION,
	.xxfi_flags = SMFIF_ADDHDRS,
	.xxfi_connect = on_connect,
	.xxfi_helo = on_helo,
	.xxfi_envfrom = on_envfrom,
	.xxfi_eom = on_eom,
	.xxfi_abort = on_abort,
	.xxfi_close = on_close,
};

int main(int argc, char **argv)
{
	if (argc != 2 || smfi_setconn(argv[1]) == MI_FAILURE
	    || smfi_register(description) == MI_FAILURE)
		return 1;
	return smfi_main();
}
