/*
 * The limit: a milter in C that looks at nothing but length and letter of a packet.
 *
 * One thread, one epoll set, one read and one write for a command. No milter library can do less.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <signal.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

struct connection {
    int fd;
    unsigned char head[5];
    size_t have;     /* bytes of the head */
    size_t missing;  /* bytes of the payload */
};

static int add_header, no_reply;
static char buffer[70000], answers[70000];
static size_t answer_length;

static void answer(const char *data, size_t length)
{
    memcpy(answers + answer_length, data, length);
    answer_length += length;
}

#define TEXT(text) text, sizeof text - 1

/* Answer what is complete; tell whether the connection goes on. */
static int whole(char letter)
{
    switch (letter) {
    case 'O':
        if (no_reply)
            answer(TEXT("\0\0\0\rO\0\0\0\6\0\0\0\1\0\0\0\x80"));
        else
            answer(TEXT("\0\0\0\rO\0\0\0\6\0\0\0\1\0\0\0\0"));
        break;
    case 'D':
    case 'A':
        break;
    case 'Q':
        return 0;
    case 'L':
        if (!no_reply)
            answer(TEXT("\0\0\0\1c"));
        break;
    case 'E':
        if (add_header)
            answer(TEXT("\0\0\0\x0ehX-Bench\0seen\0"));
        /* fall through */
    default:
        answer(TEXT("\0\0\0\1c"));
    }
    return 1;
}

static int take(struct connection *c)
{
    ssize_t count = read(c->fd, buffer, sizeof buffer);
    size_t at = 0, part;
    if (count <= 0)
        return 0;
    answer_length = 0;
    while (at < (size_t)count) {
        if (c->have < 5) {
            c->head[c->have++] = buffer[at++];
            if (c->have < 5)
                continue;
            c->missing = ntohl(*(uint32_t *)c->head) - 1;
        }
        part = c->missing < count - at ? c->missing : count - at;
        c->missing -= part;
        at += part;
        if (!c->missing) {
            c->have = 0;
            if (!whole(c->head[4]))
                return 0;
        }
    }
    return !answer_length || write(c->fd, answers, answer_length) == (ssize_t)answer_length;
}

static int listening_socket(const char *where)
{
    int fd, one = 1;
    if (!strncmp(where, "unix:", 5)) {
        struct sockaddr_un address = {.sun_family = AF_UNIX};
        strncpy(address.sun_path, where + 5, sizeof address.sun_path - 1);
        fd = socket(AF_UNIX, SOCK_STREAM, 0);
        if (bind(fd, (struct sockaddr *)&address, sizeof address))
            exit(1);
    } else {
        struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons(atoi(where + 5)),
                                      .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
        fd = socket(AF_INET, SOCK_STREAM, 0);
        setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
        if (bind(fd, (struct sockaddr *)&address, sizeof address))
            exit(1);
    }
    if (listen(fd, 4096))
        exit(1);
    return fd;
}

int main(void)
{
    int set = epoll_create1(0), count, i;
    int listening = listening_socket(getenv("BENCH_LISTEN"));
    struct epoll_event event = {EPOLLIN, {.ptr = NULL}}, events[256];
    add_header = atoi(getenv("BENCH_ADD"));
    no_reply = atoi(getenv("BENCH_NOREPLY"));
    signal(SIGPIPE, SIG_IGN);
    epoll_ctl(set, EPOLL_CTL_ADD, listening, &event);
    for (;;) {
        count = epoll_wait(set, events, 256, -1);
        for (i = 0; i < count; i++) {
            struct connection *c = events[i].data.ptr;
            if (!c) {
                c = calloc(1, sizeof *c);
                c->fd = accept(listening, NULL, NULL);
                event.data.ptr = c;
                epoll_ctl(set, EPOLL_CTL_ADD, c->fd, &event);
            } else if (!take(c)) {
                close(c->fd);
                free(c);
            }
        }
    }
}
