/* The floor: a storage SCP that does nothing but keep the gateway's promise, so that others can be measured against it.

A record of each image (its SOP Instance UID and the beginning of its data set) is in the file, and the file is on disk
(fdatasync), before 0x0000 is answered. One thread and one commit a turn: all images that ended while the disk was busy
share the next sync. Pixels are dropped in the kernel (MSG_TRUNC of tcp(7)); half an image is acknowledged at once
(TCP_QUICKACK). The file grows by zeros ahead of its records: a sync then has no size and no extents to write. Whoever
proposes an Asynchronous Operations Window (PS3.7 D.3.3.3) gets 64 at most. If the disk fails, it ends, and answers
nothing.

   floor FILE PORT      prints "listening on PORT"; port 0 takes any; 127.0.0.1 only

A record: 2 bytes, its size after them, little endian; the UID in 64 bytes, padded by NUL; up to 512 of the data set. */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/tcp.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

#define EXPLICIT "1.2.840.10008.1.2.1" /* VR Little Endian */
enum {
    LONGEST_PDU = 131072, /* announced */
    WINDOW = 64,
    IN = 65536,           /* the longest PDU other than P-DATA-TF */
    WORTH_DROPPING = 8192, /* bytes; fewer are read with what follows them */
    COMMAND = 1024, UID = 64, HEAD = 512, RECORD = 2 + UID + HEAD, ANSWER = 512,
    BATCH = 1 << 20,      /* bytes of records between two commits */
    GROWTH = 16 << 20,    /* bytes of zeros ahead of them */
    EVENTS = 64,          /* connections that are read between two commits */
};

struct connection {
    int fd;
    bool closing, answering;
    uint8_t in[IN];
    size_t in_size, pdu_left, pdv_left; /* bytes of the P-DATA-TF PDU, and of its PDV, that were not read yet */
    int control, context;               /* of the PDV, PS3.8 9.3.5.1 and Annex E.2 */
    uint8_t command[COMMAND], head[HEAD];
    size_t command_size, head_size;
    uint8_t out[WINDOW * ANSWER];
    size_t out_size;
};

static int epoll, file;
static off_t file_at, file_size;
static uint8_t batch[BATCH];
static size_t batch_size;
static struct connection *answering[EVENTS];
static int answering_count;

static void commit(void);

static void end(const char *what)
{
    perror(what);
    exit(1);
}

/* --- encoding -------------------------------------------------------------------------------------------------- */

static uint32_t big(const uint8_t *at, int size)
{
    uint32_t value = 0;
    while (size--)
        value = value << 8 | *at++;
    return value;
}

static void set_big(uint8_t *at, uint32_t value, int size)
{
    while (size--) {
        at[size] = value;
        value >>= 8;
    }
}

static uint32_t little(const uint8_t *at, int size)
{
    uint32_t value = 0;
    while (size--)
        value = value << 8 | at[size];
    return value;
}

/* An element of a command set: implicit VR little endian, of even length (PS3.7 6.3). Returns its end. */
static uint8_t *put_element(uint8_t *at, int element, const void *value, size_t size)
{
    memcpy(at, (uint8_t[]){0, 0, element, element >> 8, size, 0, 0, 0}, 8);
    memcpy(at + 8, value, size);
    return at + 8 + size;
}

/* The value of an element of a command set, and its size; NULL where it is not there. */
static const uint8_t *element(const struct connection *c, int wanted, size_t *size)
{
    for (size_t at = 0; at + 8 <= c->command_size;) {
        size_t length = little(c->command + at + 4, 4);
        if (length > c->command_size - at - 8)
            return NULL;
        if (little(c->command + at, 4) == (uint32_t)wanted << 16) {
            *size = length;
            return c->command + at + 8;
        }
        at += 8 + length;
    }
    return NULL;
}

/* --- association ----------------------------------------------------------------------------------------------- */

static uint8_t *put_item(uint8_t *at, int kind, const void *value, size_t size)
{
    at[0] = kind;
    at[1] = 0;
    set_big(at + 2, size, 2);
    memcpy(at + 4, value, size);
    return at + 4 + size;
}

/* Accepts a presentation context with Explicit VR Little Endian, else with what is proposed first (PS3.8 9.3.3.2). */
static uint8_t *put_context(uint8_t *at, const uint8_t *context, size_t size)
{
    const uint8_t *syntax = NULL;
    size_t syntax_size = 0;
    for (size_t n = 4; n + 4 <= size; n += 4 + big(context + n + 2, 2)) {
        size_t length = big(context + n + 2, 2);
        if (context[n] != 0x40 || length > size - n - 4)
            continue;
        bool best = length == strlen(EXPLICIT) && !memcmp(context + n + 4, EXPLICIT, length);
        if (!syntax || best) {
            syntax = context + n + 4;
            syntax_size = length;
        }
    }
    uint8_t value[4 + 4 + UID] = {context[0], 0, syntax && syntax_size <= UID ? 0 : 4, 0};
    uint8_t *last = syntax && syntax_size <= UID ? put_item(value + 4, 0x40, syntax, syntax_size) : value + 4;
    return put_item(at, 0x21, value, last - value);
}

static bool send_all(const struct connection *c, const uint8_t *at, size_t size)
{
    return send(c->fd, at, size, MSG_NOSIGNAL | MSG_DONTWAIT) == (ssize_t)size;
}

/* Answers an A-ASSOCIATE-RQ (PS3.8 9.3.2) by an A-ASSOCIATE-AC. Returns if it could. */
static bool accept_association(struct connection *c, const uint8_t *pdu, size_t size)
{
    static uint8_t answer[IN + 256]; /* a context's answer is not longer than its proposal */
    if (size < 74)
        return false;
    memcpy(answer, pdu, 74); /* the titles are repeated */
    answer[0] = 2;
    uint8_t *at = put_item(answer + 74, 0x10, "1.2.840.10008.3.1.1.1", 21);
    int invoked = 1;
    for (size_t n = 74; n + 4 <= size;) {
        size_t length = pdu[n] == 0x50 ? 0 : big(pdu + n + 2, 2); /* 0x50: its items, as if they stood beside it */
        const uint8_t *value = pdu + n + 4;
        if (length > size - n - 4)
            return false;
        if (pdu[n] == 0x20 && length >= 4)
            at = put_context(at, value, length);
        else if (pdu[n] == 0x53 && length == 4)
            invoked = big(value, 2) && big(value, 2) < WINDOW ? big(value, 2) : WINDOW;
        n += 4 + length;
    }
    uint8_t user[64], *last = user, longest[4];
    set_big(longest, LONGEST_PDU, 4);
    last = put_item(last, 0x51, longest, 4);
    last = put_item(last, 0x52, "1.2.826.0.1.3680043.8.498.1", 27);
    if (invoked > 1)
        last = put_item(last, 0x53, (uint8_t[]){0, invoked, 0, 1}, 4);
    at = put_item(at, 0x50, user, last - user);
    set_big(answer + 2, at - answer - 6, 4);
    return send_all(c, answer, at - answer);
}

/* Takes a whole PDU other than P-DATA-TF. Returns if the association goes on. */
static bool take_pdu(struct connection *c, const uint8_t *pdu, size_t size)
{
    if (pdu[0] == 1)
        return accept_association(c, pdu, size);
    if (pdu[0] == 5)
        send_all(c, (uint8_t[]){6, 0, 0, 0, 0, 4, 0, 0, 0, 0}, 10);
    return false;
}

/* --- images ---------------------------------------------------------------------------------------------------- */

/* Makes the answer to the command, which is sent after the next commit. Returns if the command could be read. */
static bool answer(struct connection *c, int field)
{
    size_t class_size, uid_size = 0, id_size;
    const uint8_t *class = element(c, 0x0002, &class_size), *id = element(c, 0x0110, &id_size);
    const uint8_t *uid = element(c, 0x1000, &uid_size);
    if (!class || class_size > UID || !id || id_size != 2 || uid_size > UID)
        return false;
    if (sizeof c->out - c->out_size < ANSWER)
        commit();
    uint8_t *pdu = c->out + c->out_size, *at = pdu + 12 + 12;
    at = put_element(at, 0x0002, class, class_size);
    at = put_element(at, 0x0100, (uint8_t[]){field, 0x80}, 2);
    at = put_element(at, 0x0120, id, 2);
    at = put_element(at, 0x0800, (uint8_t[]){1, 1}, 2);
    at = put_element(at, 0x0900, (uint8_t[]){0, 0}, 2);
    if (uid)
        at = put_element(at, 0x1000, uid, uid_size);
    size_t size = at - pdu - 24;
    put_element(pdu + 12, 0x0000, (uint8_t[]){size, size >> 8, 0, 0}, 4);
    set_big(pdu, 0x0400, 2);
    set_big(pdu + 2, at - pdu - 6, 4);
    set_big(pdu + 6, at - pdu - 10, 4);
    set_big(pdu + 10, c->context << 8 | 3, 2);
    c->out_size += at - pdu;
    if (!c->answering)
        answering[answering_count++] = c;
    c->answering = true;
    return true;
}

static bool keep(struct connection *c)
{
    size_t uid_size;
    const uint8_t *uid = element(c, 0x1000, &uid_size);
    if (!uid || uid_size > UID)
        return false;
    if (BATCH - batch_size < RECORD)
        commit();
    uint8_t *record = batch + batch_size;
    size_t size = UID + c->head_size;
    record[0] = size;
    record[1] = size >> 8;
    memset(record + 2, 0, UID);
    memcpy(record + 2, uid, uid_size);
    memcpy(record + 2 + UID, c->head, c->head_size);
    batch_size += 2 + size;
    return true;
}

/* Takes the end of a command or of a data set. Returns if the association goes on. */
static bool take_end(struct connection *c)
{
    size_t size;
    const uint8_t *field = element(c, 0x0100, &size);
    int number = field && size == 2 ? (int)little(field, 2) : 0;
    if (c->control & 1) {
        c->head_size = 0;
        if (number == 0x0001) /* C-STORE-RQ: its data set follows */
            return true;
        bool well = number == 0x0030 && answer(c, 0x30); /* C-ECHO-RQ */
        c->command_size = 0;
        return well;
    }
    bool well = number == 0x0001 && keep(c) && answer(c, 0x01);
    c->command_size = 0;
    return well;
}

/* Takes what is in the buffer, and leaves what has no end yet. Returns if the association goes on. */
static bool take(struct connection *c)
{
    size_t at = 0;
    for (;;) {
        size_t there = c->in_size - at;
        const uint8_t *in = c->in + at;
        if (c->pdv_left) {
            size_t n = there < c->pdv_left ? there : c->pdv_left;
            bool command = c->control & 1;
            size_t *size = command ? &c->command_size : &c->head_size, room = (command ? COMMAND : HEAD) - *size;
            if (n == 0)
                break;
            if (command && n > room)
                return false;
            memcpy((command ? c->command : c->head) + *size, in, n < room ? n : room);
            *size += n < room ? n : room;
            at += n;
            c->pdu_left -= n;
            c->pdv_left -= n;
            if (!c->pdv_left && c->control & 2 && !take_end(c))
                return false;
        } else if (c->pdu_left) {
            if (there < 6)
                break;
            c->context = in[4];
            c->control = in[5];
            c->pdv_left = big(in, 4) - 2;
            c->pdu_left -= 6;
            at += 6;
            if (big(in, 4) < 2 || c->pdv_left > c->pdu_left)
                return false;
            if (!c->pdv_left && c->control & 2 && !take_end(c)) /* an empty last fragment */
                return false;
        } else {
            if (there < 6 || (in[0] != 4 && there - 6 < big(in + 2, 4)))
                break;
            size_t length = big(in + 2, 4);
            if (in[0] != 4 && !take_pdu(c, in, 6 + length))
                return false;
            c->pdu_left = in[0] == 4 ? length : 0;
            at += in[0] == 4 ? 6 : 6 + length;
        }
    }
    c->in_size -= at;
    if (at)
        memmove(c->in, c->in + at, c->in_size);
    return true;
}

/* Reads until the socket is empty. Returns if the association goes on. */
static bool read_connection(struct connection *c)
{
    for (;;) {
        bool pixels = !c->in_size && !(c->control & 1) && c->head_size == HEAD && c->pdv_left > WORTH_DROPPING;
        size_t wanted = pixels ? c->pdv_left - 1 : IN - c->in_size; /* the last byte ends the image, in `take` */
        if (!wanted)
            return false;
        ssize_t n = recv(c->fd, pixels ? NULL : c->in + c->in_size, wanted, MSG_DONTWAIT | (pixels ? MSG_TRUNC : 0));
        if (n < 0)
            return errno == EAGAIN;
        if (n == 0)
            return false;
        if (pixels) {
            c->pdu_left -= n;
            c->pdv_left -= n;
        } else {
            c->in_size += n;
            if (!take(c))
                return false;
        }
        if ((size_t)n < wanted) {
            if (c->pdu_left || c->command_size) /* Nagle's algorithm may hold back the rest */
                setsockopt(c->fd, IPPROTO_TCP, TCP_QUICKACK, &(int){1}, sizeof(int));
            return true;
        }
    }
}

/* --- commit ---------------------------------------------------------------------------------------------------- */

/* Writes zeros behind what is there, so that records have room; on disk when this returns. */
static void grow(void)
{
    static const uint8_t zeros[1 << 20];
    for (off_t end_at = file_size + GROWTH; file_size < end_at; file_size += sizeof zeros)
        if (pwrite(file, zeros, sizeof zeros, file_size) != (ssize_t)sizeof zeros)
            end("cannot write");
    if (fsync(file))
        end("cannot sync");
}

/* Makes the records durable, and only then sends the answers. */
static void commit(void)
{
    if (batch_size) {
        if (pwrite(file, batch, batch_size, file_at) != (ssize_t)batch_size)
            end("cannot write");
        if (fdatasync(file))
            end("cannot sync");
        file_at += batch_size;
        batch_size = 0;
    }
    for (int n = 0; n < answering_count; n++) {
        struct connection *c = answering[n];
        if (!send_all(c, c->out, c->out_size))
            c->closing = true;
        c->out_size = 0;
        c->answering = false;
    }
    answering_count = 0;
    if (file_size - file_at < 2 * BATCH)
        grow();
}

/* --- program --------------------------------------------------------------------------------------------------- */

static void open_connection(int listener)
{
    int fd = accept4(listener, NULL, NULL, SOCK_CLOEXEC);
    if (fd < 0)
        return;
    struct connection *c = calloc(1, sizeof *c);
    c->fd = fd;
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &(int){1}, sizeof(int));
    if (epoll_ctl(epoll, EPOLL_CTL_ADD, fd, &(struct epoll_event){.events = EPOLLIN, .data.ptr = c}))
        end("cannot wait for a connection");
}

int main(int argc, char **argv)
{
    if (argc != 3) {
        fputs("floor FILE PORT\n", stderr);
        return 2;
    }
    file = open(argv[1], O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
    if (file < 0)
        end(argv[1]);
    grow();
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons(atoi(argv[2]))};
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    socklen_t size = sizeof address;
    int listener = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &(int){1}, sizeof(int));
    if (bind(listener, (struct sockaddr *)&address, size) || listen(listener, 128))
        end("cannot listen");
    getsockname(listener, (struct sockaddr *)&address, &size);
    printf("listening on %d\n", ntohs(address.sin_port));
    fflush(stdout);
    epoll = epoll_create1(EPOLL_CLOEXEC);
    epoll_ctl(epoll, EPOLL_CTL_ADD, listener, &(struct epoll_event){.events = EPOLLIN, .data.ptr = NULL});
    for (;;) {
        struct epoll_event events[EVENTS];
        int count = epoll_wait(epoll, events, EVENTS, -1);
        for (int n = 0; n < count; n++) {
            struct connection *c = events[n].data.ptr;
            if (!c)
                open_connection(listener);
            else if (!c->closing)
                c->closing = !read_connection(c);
        }
        commit();
        for (int n = 0; n < count; n++) {
            struct connection *c = events[n].data.ptr;
            if (c && c->closing) {
                close(c->fd);
                free(c);
            }
        }
    }
}
