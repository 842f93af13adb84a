/*
 * The MTA's side of the milter protocol, version 6, on many connections at once.
 *
 * All that a connection says is made once, when the first answer to an offer has told which steps
 * are wanted and which are not answered; every connection then walks over the same list of writes.
 * Packets that nobody answers go out in one write with the next that is answered, as Postfix does
 * it; with --split each goes out by itself, as Sendmail does it. Each answer is looked at: the
 * run ends with a fault at the first that is not what it has to be.
 *
 * It ends after --messages, or begins none after --seconds. Prints one line of JSON: connections,
 * messages, answers and fields added are counted, "rate" is messages finished per second, "cpu"
 * the seconds that this program needed. With --idle it first opens all connections, prints "idle",
 * waits for a line from its standard input, and only then sends a message on each. With --stay each
 * connection stays open after that; it prints "stayed" when the last message is answered, and waits
 * for another line before it closes them.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stddef.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

#define CHUNK 65535
#define STALLED_AFTER 120

struct segment {
    char *data;
    size_t length;
    char command; /* whose answer is awaited; 0 for none */
};

struct connection {
    int fd;
    int connected;
    int at;         /* index into segments */
    size_t sent;    /* bytes of that segment */
    int messages;   /* still to be sent on it */
    int headers;    /* fields added to the present message */
    int watched;    /* whether the epoll set looks for room to write */
    double began;
    size_t have;
    unsigned char in[1024];
};

static struct segment *segments;
static int segment_count, message_at, message_end;
static long total = 1L << 40, started, finished, answers, added, per_connection = 1;
static long made; /* connections */
static double seconds;
static int concurrent = 20, header_count = 20, split, idle, stay, window = 100, wanted_headers = 1;
static size_t body_size = 4096;
static char *target, *expected = "X-Bench: seen";
static unsigned steps;
static int steps_known;
static float *latencies;
static long latency_room;
static int epoll_fd;
static double first_at, last_at;
static struct connection **waiting; /* for room in the milter's queue of connections */
static int waiting_count, active, opened;
static double idle_seconds;

static double now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec + t.tv_nsec / 1e9;
}

__attribute__((format(printf, 1, 2))) static void fault(const char *format, ...)
{
    char text[300];
    va_list list;
    va_start(list, format);
    vsnprintf(text, sizeof text, format, list);
    va_end(list);
    printf("{\"fault\": \"%s\", \"messages\": %ld, \"answers\": %ld}\n", text, finished, answers);
    exit(1);
}

/* ---- what is said */

static char *pending;
static size_t pending_length, pending_room;

static void add(char letter, const char *payload, size_t length)
{
    uint32_t size = htonl(length + 1);
    if (pending_length + length + 5 > pending_room) {
        pending_room = 2 * (pending_length + length + 5);
        pending = realloc(pending, pending_room);
    }
    memcpy(pending + pending_length, &size, 4);
    pending[pending_length + 4] = letter;
    if (length) /* there may be none */
        memcpy(pending + pending_length + 5, payload, length);
    pending_length += length + 5;
}

static void cut(char command)
{
    if (!pending_length)
        return;
    segments = realloc(segments, (segment_count + 1) * sizeof *segments);
    segments[segment_count].data = pending;
    segments[segment_count].length = pending_length;
    segments[segment_count++].command = command;
    pending = NULL;
    pending_length = pending_room = 0;
}

/* One command with its macros, unless the milter does not want it. */
static void step(char letter, unsigned no, unsigned noreply, const char *macros, size_t macro_size,
                 const char *payload, size_t length)
{
    if (steps & no)
        return;
    if (macros) {
        add('D', macros, macro_size);
        if (split)
            cut(0);
    }
    add(letter, payload, length);
    if (!(steps & noreply))
        cut(letter);
    else if (split)
        cut(0);
}

#define TEXT(text) text, sizeof text - 1

static void write_script(void)
{
    char *body = malloc(body_size ? body_size : 1), field[200];
    size_t i, size;
    for (i = 0; i < body_size; i++)
        body[i] = i % 64 == 62 ? '\r' : i % 64 == 63 ? '\n' : 'a' + i % 26;
    step('C', 1, 0x1000,
         TEXT("Cj\0mta.example.net\0{daemon_name}\0mta.example.net\0v\0Example 1.0\0_\0mail.example."
              "org [192.0.2.1]\0"),
         TEXT("mail.example.org\0004\x10\xe1" "192.0.2.1\0"));
    step('H', 2, 0x2000, TEXT("H{tls_version}\0TLSv1.3\0{cipher}\0TLS_AES_256_GCM_SHA384\0"),
         TEXT("mail.example.org\0"));
    if (pending_length && idle)
        cut(0);
    message_at = segment_count;
    step('M', 4, 0x4000,
         TEXT("Mi\0004XyzAb1CdE\0{mail_addr}\0sender@example.org\0{mail_host}\0example.org\0"
              "{mail_mailer}\0smtp\0"),
         TEXT("<sender@example.org>\0SIZE=12345\0BODY=8BITMIME\0"));
    step('R', 8, 0x8000,
         TEXT("R{rcpt_addr}\0rcpt@example.net\0{rcpt_host}\0example.net\0{rcpt_mailer}\0local\0"),
         TEXT("<rcpt@example.net>\0NOTIFY=NEVER\0"));
    step('T', 0x200, 0x10000, TEXT("Ti\0004XyzAb1CdE\0"), NULL, 0);
    for (i = 0; i < (size_t)header_count; i++) {
        size = sprintf(field, "X-Header-%zu", i) + 1;
        size += sprintf(field + size, "the value of field number %zu, of some length or other", i);
        step('L', 0x20, 0x80, NULL, 0, field, size + 1);
    }
    step('N', 0x40, 0x40000, NULL, 0, NULL, 0);
    for (i = 0; i < body_size; i += CHUNK)
        step('B', 0x10, 0x80000, NULL, 0, body + i, body_size - i < CHUNK ? body_size - i : CHUNK);
    step('E', 0, 0, TEXT("Ei\0004XyzAb1CdE\0"), NULL, 0);
    message_end = segment_count;
    add('Q', NULL, 0);
    cut(0);
    free(body);
}

/* ---- connections */

static int late(void)
{
    return seconds && now() - first_at > seconds;
}

static void go_on(struct connection *c);

static void watch(struct connection *c, int writing)
{
    struct epoll_event event = {EPOLLIN | (writing ? EPOLLOUT : 0), {.ptr = c}};
    if (c->watched == writing)
        return;
    if (epoll_ctl(epoll_fd, c->watched < 0 ? EPOLL_CTL_ADD : EPOLL_CTL_MOD, c->fd, &event))
        fault("epoll_ctl: %s", strerror(errno));
    c->watched = writing;
}

static int connect_to(struct connection *c)
{
    if (!strncmp(target, "unix:", 5)) {
        struct sockaddr_un address = {.sun_family = AF_UNIX};
        strncpy(address.sun_path, target + 5, sizeof address.sun_path - 1);
        return connect(c->fd, (struct sockaddr *)&address, sizeof address);
    }
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons(atoi(target + 5)),
                                  .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    return connect(c->fd, (struct sockaddr *)&address, sizeof address);
}

static int new_socket(void)
{
    static unsigned turn;
    int one = 1, unix_socket = !strncmp(target, "unix:", 5);
    int fd = socket(unix_socket ? AF_UNIX : AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);
    if (fd < 0)
        fault("socket: %s", strerror(errno));
    if (!unix_socket) {
        /* One address has too few ports for the connections of some seconds. */
        struct sockaddr_in own = {.sin_family = AF_INET,
                                  .sin_addr.s_addr = htonl(0x7f000002 + turn++ % 200)};
        /* With --split, Nagle's algorithm stays on, as it does in Sendmail. */
        if (!split)
            setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
        setsockopt(fd, IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT, &one, sizeof one);
        if (bind(fd, (struct sockaddr *)&own, sizeof own))
            fault("bind: %s", strerror(errno));
    }
    return fd;
}

static void attempt(struct connection *c)
{
    if (connect_to(c) && errno != EINPROGRESS) {
        if (errno != EAGAIN)
            fault("connect: %s", strerror(errno));
        waiting[waiting_count++] = c;
        return;
    }
    c->watched = -1;
    watch(c, 1);
}

static void open_one(struct connection *c)
{
    memset(c, 0, offsetof(struct connection, in));
    c->fd = new_socket();
    c->began = now();
    if (!first_at)
        first_at = c->began;
    made++;
    c->messages = total - started < per_connection ? total - started : per_connection;
    started += c->messages;
    attempt(c);
}

static void close_one(struct connection *c)
{
    close(c->fd);
    c->fd = -1;
    active--;
    if (!idle && started < total && !late()) {
        active++;
        open_one(c);
    }
}

/* ---- answers */

static void message_done(struct connection *c)
{
    if (c->headers != wanted_headers)
        fault("%d header fields were added, not %d", c->headers, wanted_headers);
    c->headers = 0;
    last_at = now();
    if (finished == latency_room) {
        latency_room = 2 * latency_room + 1000;
        latencies = realloc(latencies, latency_room * sizeof *latencies);
    }
    latencies[finished++] = last_at - c->began;
    if (--c->messages && !late()) {
        c->began = last_at;
        c->at = message_at;
    } else
        c->at = message_end;
}

static void check_header(struct connection *c, const unsigned char *payload, size_t length)
{
    size_t name = strcspn(expected, ":");
    const char *value = expected + name + 2;
    if (length != name + strlen(value) + 2 || memcmp(payload, expected, name) || payload[name] ||
        memcmp(payload + name + 1, value, strlen(value) + 1))
        fault("a wrong header field was added");
    c->headers++;
    added++;
}

static void answered(struct connection *c, char letter, const unsigned char *payload, size_t length)
{
    char command = segments[c->at].command;
    answers++;
    if (command == 'O') {
        if (letter != 'O' || length < 12)
            fault("the offer was answered %c", letter);
        unsigned agreed = ntohl(*(uint32_t *)(payload + 8));
        if (!steps_known) {
            steps = agreed;
            steps_known = 1;
            write_script();
        } else if (agreed != steps)
            fault("agreed on steps %#x, but before on %#x", agreed, steps);
    } else if (command == 'E' && letter == 'h') {
        check_header(c, payload, length);
        return;
    } else if (command == 'E' && letter == 'p')
        return;
    else if (!(letter == 'c' || (letter == 'a' && command == 'E')) || length)
        fault("%c was answered %c with %zu bytes", command, letter, length);
    c->sent = 0;
    if (command == 'E')
        message_done(c);
    else
        c->at++;
    if (idle && command != 'E' && c->at == message_at) {
        opened++;
        active--;
        return;
    }
    if (stay && command == 'E') {
        active--;
        return;
    }
    go_on(c);
}

static void readable(struct connection *c)
{
    ssize_t count = read(c->fd, c->in + c->have, sizeof c->in - c->have);
    if (count < 0 && errno == EAGAIN)
        return;
    if (count <= 0)
        fault("the milter closed, in state %c, after %ld messages", segments[c->at].command,
              finished);
    c->have += count;
    size_t used = 0, have = c->have;
    while (c->have - used >= 5) {
        uint32_t length;
        memcpy(&length, c->in + used, 4);
        length = ntohl(length);
        if (length < 1 || length > sizeof c->in - 4)
            fault("an answer of %u bytes", length);
        if (c->have - used < 4 + length)
            break;
        answered(c, c->in[used + 4], c->in + used + 5, length - 1);
        used += 4 + length;
        if (c->fd < 0 || !c->connected) { /* closed, or another one already */
            if (used < have)
                fault("an answer too many");
            return;
        }
    }
    memmove(c->in, c->in + used, c->have -= used);
}

/* Write until an answer has to be awaited, or there is no room. */
static void go_on(struct connection *c)
{
    for (;;) {
        struct segment *s = &segments[c->at];
        ssize_t count = write(c->fd, s->data + c->sent, s->length - c->sent);
        if (count < 0 && errno != EAGAIN)
            fault("the milter broke the connection, before %c", s->command ? s->command : '-');
        if (count > 0)
            c->sent += count;
        if (c->sent < s->length) {
            watch(c, 1);
            return;
        }
        watch(c, 0);
        if (s->command)
            return;
        c->sent = 0;
        if (++c->at > message_end && steps_known) {
            close_one(c);
            return;
        }
    }
}

static void one_event(struct epoll_event *event)
{
    struct connection *c = event->data.ptr;
    if (c->fd < 0)
        return;
    if (!c->connected) {
        int error = 0;
        socklen_t size = sizeof error;
        getsockopt(c->fd, SOL_SOCKET, SO_ERROR, &error, &size);
        if (error)
            fault("connect: %s", strerror(error));
        c->connected = 1;
        go_on(c);
    } else if (event->events & (EPOLLIN | EPOLLHUP | EPOLLERR))
        readable(c);
    else if (event->events & EPOLLOUT)
        go_on(c);
}

static void turn(void)
{
    struct epoll_event events[256];
    int i, count, tries = waiting_count;
    count = epoll_wait(epoll_fd, events, 256, tries ? 1 : STALLED_AFTER * 1000);
    if (count < 0)
        fault("epoll_wait: %s", strerror(errno));
    if (!count && !tries)
        fault("no answer for %d seconds", STALLED_AFTER);
    for (i = 0; i < count; i++)
        one_event(&events[i]);
    struct connection *again[tries + 1];
    memcpy(again, waiting, tries * sizeof *again);
    memmove(waiting, waiting + tries, (waiting_count - tries) * sizeof *waiting);
    waiting_count -= tries;
    for (i = 0; i < tries; i++)
        attempt(again[i]);
}

/* ---- the run */

static void wait_for_a_line(const char *word)
{
    char line[10];
    puts(word);
    fflush(stdout);
    if (!fgets(line, sizeof line, stdin))
        fault("nobody said to go on");
}

static void run_idle(struct connection *all)
{
    int next = 0;
    while (opened < concurrent) {
        while (active < window && next < concurrent) {
            active++;
            open_one(&all[next++]);
        }
        turn();
    }
    idle_seconds = now() - first_at;
    wait_for_a_line("idle");
    first_at = now();
    for (next = 0; active || next < concurrent;) {
        while (active < window && next < concurrent) {
            active++;
            all[next].began = now();
            go_on(&all[next++]);
        }
        turn();
    }
    if (!stay)
        return;
    wait_for_a_line("stayed");
    for (next = 0; next < concurrent; next++) {
        active++;
        go_on(&all[next]);
    }
}

static void run_load(struct connection *all)
{
    int i;
    for (i = 0; i < concurrent && started < total; i++) {
        active++;
        open_one(&all[i]);
    }
    while (active)
        turn();
}

static int ascending(const void *one, const void *other)
{
    float a = *(float *)one, b = *(float *)other;
    return (a > b) - (a < b);
}

static void options(int count, char **words)
{
    int i;
    for (i = 1; i < count; i++) {
        char *name = words[i];
        if (!strcmp(name, "--split"))
            split = 1;
        else if (!strcmp(name, "--idle"))
            idle = 1;
        else if (!strcmp(name, "--stay"))
            stay = 1;
        else if (i + 1 == count)
            fault("%s: a value is missing, or there is no such option", name);
        else if (!strcmp(name, "--target"))
            target = words[++i];
        else if (!strcmp(name, "--connections"))
            concurrent = atoi(words[++i]);
        else if (!strcmp(name, "--messages"))
            total = atol(words[++i]);
        else if (!strcmp(name, "--seconds"))
            seconds = atof(words[++i]);
        else if (!strcmp(name, "--reuse"))
            per_connection = atol(words[++i]);
        else if (!strcmp(name, "--headers"))
            header_count = atoi(words[++i]);
        else if (!strcmp(name, "--body"))
            body_size = atol(words[++i]);
        else if (!strcmp(name, "--window"))
            window = atoi(words[++i]);
        else if (!strcmp(name, "--added"))
            wanted_headers = atoi(words[++i]);
        else
            fault("%s: no such option", name);
    }
    if (!target || (strncmp(target, "unix:", 5) && strncmp(target, "inet:", 5)))
        fault("--target is unix:PATH or inet:PORT");
    if (concurrent < 1 || total < 1 || per_connection < 1 || window < 1)
        fault("numbers are at least 1");
    if (stay && !idle)
        fault("--stay needs --idle");
    if (idle)
        total = concurrent;
    else if (!seconds && total == 1L << 40)
        fault("--messages or --seconds is missing");
}

int main(int count, char **words)
{
    struct rusage usage;
    int i;
    options(count, words);
    signal(SIGPIPE, SIG_IGN);
    epoll_fd = epoll_create1(0);
    waiting = malloc(concurrent * sizeof *waiting);
    struct connection *all = calloc(concurrent, sizeof *all);
    add('O', TEXT("\0\0\0\6\0\0\1\xff\0\x1f\xff\xff"));
    cut('O');
    (idle ? run_idle : run_load)(all);
    for (i = 0; i < concurrent; i++)
        if (all[i].fd > 0)
            close(all[i].fd);
    getrusage(RUSAGE_SELF, &usage);
    qsort(latencies, finished, sizeof *latencies, ascending);
    printf("{\"messages\": %ld, \"connections\": %ld, \"answers\": %ld, \"added\": %ld, "
           "\"rate\": %.3f, \"p50\": %.6f, \"p99\": %.6f, \"longest\": %.6f, \"cpu\": %.6f, \"steps\": %u, "
           "\"idle_seconds\": %.6f}\n",
           finished, made, answers, added,
           finished / (last_at - first_at), latencies[(finished - 1) / 2],
           latencies[(finished - 1) * 99 / 100], latencies[finished - 1],
           usage.ru_utime.tv_sec + usage.ru_stime.tv_sec +
               (usage.ru_utime.tv_usec + usage.ru_stime.tv_usec) / 1e6,
           steps, idle_seconds);
    return 0;
}
