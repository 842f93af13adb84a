/*
** A milter whose behaviour is a script, linked with the real libmilter.
**
** Strategy: one long-lived process. The main thread reads cases from standard input; for each it
** registers the case's callbacks with smfi_register(), connects to the UNIX socket that smfi_main()
** listens on in a second thread, sends the conversation, half-closes, and waits until libmilter has
** closed its end. Everything between accept() and close() is libmilter's own work. What the
** callbacks saw, what the smfi_* calls answered and what was written goes to standard output.
**
** Three things are arranged from outside so that the same case always gives the same record:
**  - accept() is delayed until the conversation lies in the socket buffer (libmilter treats a pause
**    before the first command differently from no pause),
**  - libmilter's heap memory comes zeroed (an unterminated 'U' payload is read one byte too far),
**  - its process-wide table of skippable states is put back before each case (cases must not
**    influence each other).
**
** Wire format of both pipes: see codec.py.
*/

#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <poll.h>
#include <pthread.h>
#include <semaphore.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <syslog.h>
#include <unistd.h>
#include <libmilter/mfapi.h>

enum
{
	NEGOTIATE, CONNECT, HELO, ENVFROM, ENVRCPT, DATA, UNKNOWN, HEADER, EOH, BODY, EOM, ABORT, CLOSE,
	NCALLBACKS
};
enum
{
	GETSYMVAL, SETREPLY, SETMLREPLY, ADDHEADER, CHGHEADER, INSHEADER, CHGFROM, ADDRCPT, ADDRCPT_PAR,
	DELRCPT, REPLACEBODY, PROGRESS, QUARANTINE, SETSYMLIST, VERSION
};

/* Entries of libmilter's state table (engine.c, ST_INIT to ST_Q_NC). */
#define NSTATES 15
#define MAXLINES 40		/* more than the 32 that smfi_setmlreply() takes */
#define HANG_MS 20000

/* It is static in libmilter; objcopy makes it visible when this is linked. */
extern int next_states[NSTATES];

/* ---- byte buffers ---------------------------------------------------------------------------- */

struct buffer
{
	unsigned char *data;
	size_t len, size;
};

static void
fail(const char *what)
{
	perror(what);
	_exit(2);
}

static unsigned char *
reserve(struct buffer *b, size_t n)
{
	if (b->len + n > b->size)
	{
		b->size = (b->len + n) * 2;
		b->data = realloc(b->data, b->size);
		if (b->data == NULL)
			fail("realloc");
	}
	b->len += n;
	return b->data + b->len - n;
}

static void put(struct buffer *b, const void *data, size_t n) { memcpy(reserve(b, n), data, n); }
static void put_u8(struct buffer *b, uint8_t v) { put(b, &v, 1); }
static void put_u32(struct buffer *b, uint32_t v) { put(b, &v, 4); }
static void put_int(struct buffer *b, int64_t v) { put_u8(b, 'i'); put(b, &v, 8); }

static void
put_bytes(struct buffer *b, const void *data, size_t n)
{
	if (data == NULL)
	{
		put_u8(b, 'n');
		return;
	}
	put_u8(b, 's');
	put_u32(b, n);
	put(b, data, n);
}

static void
put_text(struct buffer *b, const char *s)
{
	put_bytes(b, s, s == NULL ? 0 : strlen(s));
}

static const unsigned char *
get(const unsigned char **p, size_t n)
{
	const unsigned char *at = *p;

	*p += n;
	return at;
}

static uint8_t get_u8(const unsigned char **p) { return *get(p, 1); }
static uint16_t get_u16(const unsigned char **p) { uint16_t v; memcpy(&v, get(p, 2), 2); return v; }
static uint32_t get_u32(const unsigned char **p) { uint32_t v; memcpy(&v, get(p, 4), 4); return v; }
static uint64_t get_u64(const unsigned char **p) { uint64_t v; memcpy(&v, get(p, 8), 8); return v; }

/* The other side has put a NUL behind the text, and counted it in the length. */
static char *
get_text(const unsigned char **p, size_t *len)
{
	size_t n;
	char *s;

	if (get_u8(p) == 'n')
		return NULL;
	n = get_u32(p);
	s = (char *) get(p, n);
	if (len != NULL)
		*len = n - 1;
	return s;
}

/* ---- the case at hand ------------------------------------------------------------------------ */

static struct
{
	const unsigned char *reactions[NCALLBACKS];	/* the next reaction of each callback */
	unsigned left[NCALLBACKS];
	struct buffer log, output;
	int mta_fd, milter_fd;
	size_t written, consumed;
} now;

static pthread_mutex_t output_lock = PTHREAD_MUTEX_INITIALIZER;
static sem_t conversation_sent;

static void
drain(void)
{
	ssize_t n;
	int unread = 0;

	pthread_mutex_lock(&output_lock);
	while (ioctl(now.mta_fd, FIONREAD, &unread) == 0 && unread > 0)
	{
		n = recv(now.mta_fd, reserve(&now.output, unread), unread, MSG_DONTWAIT);
		now.output.len -= unread - (n > 0 ? n : 0);
		if (n <= 0)
			break;
	}
	pthread_mutex_unlock(&output_lock);
}

static void
call_function(SMFICTX *ctx, const unsigned char **p)
{
	int fn = get_u8(p), i, r = -99;
	unsigned major = 0, minor = 0, level = 0;
	size_t len = 0;
	char *a, *b, *c, *l[MAXLINES] = { NULL };

	put_u8(&now.log, 'R');
	put_u8(&now.log, fn);
	switch (fn)
	{
	  case GETSYMVAL:
		put_text(&now.log, smfi_getsymval(ctx, get_text(p, NULL)));
		return;
	  case VERSION:
		r = smfi_version(&major, &minor, &level);
		put_int(&now.log, r != MI_SUCCESS ? r : (int) (major * 1000000 + minor * 1000 + level));
		return;
	  case SETREPLY:
		a = get_text(p, NULL); b = get_text(p, NULL); c = get_text(p, NULL);
		r = smfi_setreply(ctx, a, b, c);
		break;
	  case SETMLREPLY:
		a = get_text(p, NULL); b = get_text(p, NULL);
		for (i = get_u8(p), r = 0; r < i; r++)
			l[r] = get_text(p, NULL);
		r = smfi_setmlreply(ctx, a, b, l[0], l[1], l[2], l[3], l[4], l[5], l[6], l[7],
			l[8], l[9], l[10], l[11], l[12], l[13], l[14], l[15], l[16], l[17], l[18],
			l[19], l[20], l[21], l[22], l[23], l[24], l[25], l[26], l[27], l[28], l[29],
			l[30], l[31], l[32], l[33], l[34], l[35], l[36], l[37], l[38], l[39], NULL);
		break;
	  case ADDHEADER:
		a = get_text(p, NULL); b = get_text(p, NULL);
		r = smfi_addheader(ctx, a, b);
		break;
	  case CHGHEADER:
		a = get_text(p, NULL); i = (int) get_u32(p); b = get_text(p, NULL);
		r = smfi_chgheader(ctx, a, i, b);
		break;
	  case INSHEADER:
		i = (int) get_u32(p); a = get_text(p, NULL); b = get_text(p, NULL);
		r = smfi_insheader(ctx, i, a, b);
		break;
	  case CHGFROM:
		a = get_text(p, NULL); b = get_text(p, NULL);
		r = smfi_chgfrom(ctx, a, b);
		break;
	  case ADDRCPT:
		r = smfi_addrcpt(ctx, get_text(p, NULL));
		break;
	  case ADDRCPT_PAR:
		a = get_text(p, NULL); b = get_text(p, NULL);
		r = smfi_addrcpt_par(ctx, a, b);
		break;
	  case DELRCPT:
		r = smfi_delrcpt(ctx, get_text(p, NULL));
		break;
	  case REPLACEBODY:
		a = get_text(p, &len);
		r = smfi_replacebody(ctx, (unsigned char *) a, a == NULL ? 1 : (int) len);
		break;
	  case PROGRESS:
		r = smfi_progress(ctx);
		break;
	  case QUARANTINE:
		r = smfi_quarantine(ctx, get_text(p, NULL));
		break;
	  case SETSYMLIST:
		i = (int) get_u32(p); a = get_text(p, NULL);
		r = smfi_setsymlist(ctx, i, a);
		break;
	}
	put_int(&now.log, r);
}

static void
begin(int callback)
{
	drain();
	put_u8(&now.log, 'C');
	put_u8(&now.log, callback);
	put_u32(&now.log, now.output.len);
}

static sfsistat
react(SMFICTX *ctx, int callback, unsigned long *actions, unsigned long *steps)
{
	const unsigned char *p;
	int32_t result;
	uint32_t size;
	unsigned long value;
	unsigned n;

	put_u8(&now.log, '.');		/* end of the arguments */
	if (now.left[callback] == 0)
		return SMFIS_CONTINUE;
	now.left[callback]--;
	p = now.reactions[callback];
	size = get_u32(&p);
	now.reactions[callback] = p + size;
	result = (int32_t) get_u32(&p);
	n = get_u8(&p);
	value = get_u64(&p);
	if (n && actions != NULL)
		*actions = value;
	n = get_u8(&p);
	value = get_u64(&p);
	if (n && steps != NULL)
		*steps = value;
	for (n = get_u16(&p); n > 0; n--)
		call_function(ctx, &p);
	return result;
}

/* ---- the callbacks --------------------------------------------------------------------------- */

static sfsistat
on_negotiate(SMFICTX *ctx, unsigned long f0, unsigned long f1, unsigned long f2, unsigned long f3,
	     unsigned long *pf0, unsigned long *pf1, unsigned long *pf2, unsigned long *pf3)
{
	begin(NEGOTIATE);
	put_int(&now.log, f0 & 0xffffffff);	/* bit 31 arrives sign-extended */
	put_int(&now.log, f1 & 0xffffffff);
	put_int(&now.log, f2);
	put_int(&now.log, f3);
	*pf2 = *pf3 = 0;
	return react(ctx, NEGOTIATE, pf0, pf1);
}

static int
family_number(const _SOCK_ADDR *addr)
{
	if (addr == NULL)
		return 0;
	return addr->sa_family == AF_INET ? 4 : addr->sa_family == AF_INET6 ? 6 : 1;
}

static sfsistat
on_connect(SMFICTX *ctx, char *host, _SOCK_ADDR *addr)
{
	char text[INET6_ADDRSTRLEN];
	struct sockaddr_in *in4 = (struct sockaddr_in *) addr;
	struct sockaddr_in6 *in6 = (struct sockaddr_in6 *) addr;

	begin(CONNECT);
	put_text(&now.log, host);
	if (addr == NULL)
		put_text(&now.log, NULL);
	else if (addr->sa_family == AF_INET)
	{
		put_text(&now.log, inet_ntop(AF_INET, &in4->sin_addr, text, sizeof text));
		put_int(&now.log, ntohs(in4->sin_port));
	}
	else if (addr->sa_family == AF_INET6)
	{
		put_text(&now.log, inet_ntop(AF_INET6, &in6->sin6_addr, text, sizeof text));
		put_int(&now.log, ntohs(in6->sin6_port));
	}
	else
		put_text(&now.log, ((struct sockaddr_un *) addr)->sun_path);
	put_int(&now.log, family_number(addr));
	return react(ctx, CONNECT, NULL, NULL);
}

static sfsistat
on_text(SMFICTX *ctx, int callback, const char *first, const char *second)
{
	begin(callback);
	if (first != NULL)
		put_text(&now.log, first);
	if (second != NULL)
		put_text(&now.log, second);
	return react(ctx, callback, NULL, NULL);
}

static sfsistat
on_argv(SMFICTX *ctx, int callback, char **argv)
{
	begin(callback);
	for (; *argv != NULL; argv++)
		put_text(&now.log, *argv);
	return react(ctx, callback, NULL, NULL);
}

static sfsistat on_helo(SMFICTX *ctx, char *host) { return on_text(ctx, HELO, host, NULL); }
static sfsistat on_envfrom(SMFICTX *ctx, char **argv) { return on_argv(ctx, ENVFROM, argv); }
static sfsistat on_envrcpt(SMFICTX *ctx, char **argv) { return on_argv(ctx, ENVRCPT, argv); }
static sfsistat on_data(SMFICTX *ctx) { return on_text(ctx, DATA, NULL, NULL); }
static sfsistat on_unknown(SMFICTX *ctx, const char *s) { return on_text(ctx, UNKNOWN, s, NULL); }
static sfsistat on_header(SMFICTX *ctx, char *f, char *v) { return on_text(ctx, HEADER, f, v); }
static sfsistat on_eoh(SMFICTX *ctx) { return on_text(ctx, EOH, NULL, NULL); }
static sfsistat on_eom(SMFICTX *ctx) { return on_text(ctx, EOM, NULL, NULL); }
static sfsistat on_abort(SMFICTX *ctx) { return on_text(ctx, ABORT, NULL, NULL); }

static sfsistat
on_body(SMFICTX *ctx, unsigned char *data, size_t len)
{
	begin(BODY);
	put_bytes(&now.log, data, len);
	return react(ctx, BODY, NULL, NULL);
}

static sfsistat
on_close(SMFICTX *ctx)
{
	int unread = 0;

	if (ioctl(now.milter_fd, FIONREAD, &unread) != 0)
		fail("FIONREAD");
	now.consumed = now.written - unread;
	return on_text(ctx, CLOSE, NULL, NULL);
}

/* ---- around libmilter ------------------------------------------------------------------------ */

extern int __real_accept(int fd, struct sockaddr *addr, socklen_t *len);
extern void *__real_malloc(size_t n);

int
__wrap_accept(int listener, struct sockaddr *addr, socklen_t *len)
{
	int fd = __real_accept(listener, addr, len), big = 8 << 20;

	if (fd < 0)
		return fd;
	if (setsockopt(fd, SOL_SOCKET, SO_SNDBUFFORCE, &big, sizeof big) != 0)
		(void) setsockopt(fd, SOL_SOCKET, SO_SNDBUF, &big, sizeof big);
	while (sem_wait(&conversation_sent) != 0)
		;
	now.milter_fd = fd;
	return fd;
}

void *
__wrap_malloc(size_t n)
{
	return calloc(1, n + 1);
}

static void *
listen_for_ever(void *unused)
{
	(void) unused;
	if (smfi_main() != MI_SUCCESS)
		fail("smfi_main");
	return NULL;
}

static void
register_case(uint32_t version, uint32_t mask, uint64_t flags)
{
#define ON(id, function) ((mask >> (id)) & 1 ? (function) : NULL)
	struct smfiDesc desc = {
		.xxfi_name = "scripted", .xxfi_version = version, .xxfi_flags = flags,
		.xxfi_connect = ON(CONNECT, on_connect), .xxfi_helo = ON(HELO, on_helo),
		.xxfi_envfrom = ON(ENVFROM, on_envfrom), .xxfi_envrcpt = ON(ENVRCPT, on_envrcpt),
		.xxfi_header = ON(HEADER, on_header), .xxfi_eoh = ON(EOH, on_eoh),
		.xxfi_body = ON(BODY, on_body),
		.xxfi_eom = ON(EOM, on_eom), .xxfi_abort = on_abort, .xxfi_close = on_close,
		.xxfi_unknown = ON(UNKNOWN, on_unknown), .xxfi_data = ON(DATA, on_data),
		.xxfi_negotiate = ON(NEGOTIATE, on_negotiate),
	};
	if (smfi_register(desc) != MI_SUCCESS)
	{
		fprintf(stderr, "smfi_register failed for version %x\n", version);
		_exit(2);
	}
}

/* Gives 1 when all is sent and the half-close done. */
static int
send_some(const unsigned char **p, size_t *left)
{
	ssize_t n;

	while (*left > 0)
	{
		n = send(now.mta_fd, *p, *left, MSG_DONTWAIT | MSG_NOSIGNAL);
		if (n < 0 && (errno == EAGAIN || errno == EWOULDBLOCK))
			return 0;
		if (n < 0)		/* the milter has closed */
			return 1;
		*p += n;
		*left -= n;
		now.written += n;
	}
	(void) shutdown(now.mta_fd, SHUT_WR);
	return 1;
}

static void
converse(const struct sockaddr_un *addr, const unsigned char *bytes, size_t left)
{
	struct pollfd pfd;
	int big = 8 << 20, waited = 0, sent;

	now.mta_fd = socket(AF_UNIX, SOCK_STREAM, 0);
	if (now.mta_fd < 0)
		fail("socket");
	if (setsockopt(now.mta_fd, SOL_SOCKET, SO_SNDBUFFORCE, &big, sizeof big) != 0)
		(void) setsockopt(now.mta_fd, SOL_SOCKET, SO_SNDBUF, &big, sizeof big);
	if (connect(now.mta_fd, (const struct sockaddr *) addr, sizeof *addr) != 0)
		fail("connect");
	sent = send_some(&bytes, &left);
	sem_post(&conversation_sent);
	pfd.fd = now.mta_fd;
	pfd.events = POLLRDHUP;
	while (poll(&pfd, 1, 20) == 0)
	{
		drain();
		if (!sent)
			sent = send_some(&bytes, &left);
		if ((waited += 20) > HANG_MS)
		{
			fprintf(stderr, "libmilter hangs\n");
			_exit(3);
		}
	}
	drain();
	close(now.mta_fd);
}

static int
read_all(void *data, size_t n)
{
	ssize_t got;
	size_t have = 0;

	while (have < n)
	{
		got = read(0, (char *) data + have, n - have);
		if (got <= 0)
			return 0;
		have += got;
	}
	return 1;
}

static void
write_all(const struct buffer *b)
{
	ssize_t put;
	size_t have = 0;

	while (have < b->len)
	{
		put = write(1, b->data + have, b->len - have);
		if (put <= 0)
			fail("write");
		have += put;
	}
}

static void
run_case(const unsigned char *p, const struct sockaddr_un *addr, struct buffer *answer)
{
	uint32_t version = get_u32(&p), mask = get_u32(&p), size;
	uint64_t flags = get_u64(&p);
	unsigned i, n;

	for (i = 0; i < NCALLBACKS; i++)
	{
		now.left[i] = get_u16(&p);
		now.reactions[i] = p;
		for (n = 0; n < now.left[i]; n++)
		{
			size = get_u32(&p);
			p += size;
		}
	}
	now.log.len = now.output.len = now.written = now.consumed = 0;
	register_case(version, mask, flags);
	size = get_u32(&p);
	converse(addr, p, size);
	put_u8(&now.log, 'E');
	put_u32(&now.log, now.consumed);
	put_u32(&now.log, now.output.len);
	put(&now.log, now.output.data, now.output.len);
	answer->len = 0;
	put_u32(answer, now.log.len);
	put(answer, now.log.data, now.log.len);
}

int
main(int argc, char **argv)
{
	struct sockaddr_un addr = { .sun_family = AF_UNIX };
	struct buffer request = { 0 }, answer = { 0 };
	int pristine[NSTATES];
	char spec[sizeof addr.sun_path + 8];
	pthread_t tid;
	uint32_t size;

	if (argc != 2 || strlen(argv[1]) >= sizeof addr.sun_path)
	{
		fprintf(stderr, "usage: scripted_milter SOCKET\n");
		return 2;
	}
	strcpy(addr.sun_path, argv[1]);
	snprintf(spec, sizeof spec, "unix:%s", argv[1]);
	/* libmilter reports each broken packet to syslog */
	(void) setlogmask(LOG_MASK(LOG_DEBUG));
	memcpy(pristine, next_states, sizeof pristine);
	(void) reserve(&now.output, 1);
	sem_init(&conversation_sent, 0, 0);
	register_case(2, 0, 0);
	if (smfi_setconn(spec) != MI_SUCCESS || smfi_opensocket(1) != MI_SUCCESS)
		fail(spec);
	(void) smfi_settimeout(10);
	if (pthread_create(&tid, NULL, listen_for_ever, NULL) != 0)
		fail("pthread_create");
	while (read_all(&size, 4))
	{
		request.len = 0;
		(void) reserve(&request, size);
		if (!read_all(request.data, size))
			break;
		memcpy(next_states, pristine, sizeof pristine);
		run_case(request.data, &addr, &answer);
		write_all(&answer);
	}
	/* the folder was made for the socket; whoever made it may be gone */
	(void) unlink(argv[1]);
	if (strrchr(argv[1], '/') != NULL)
	{
		*strrchr(argv[1], '/') = '\0';
		(void) rmdir(argv[1]);
	}
	_exit(0);
}
