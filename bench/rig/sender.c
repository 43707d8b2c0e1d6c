/* A C-STORE SCU that hides no receiver: sends CT images that it makes, and keeps up to a window of them unanswered.

Each association has a thread and a socket of its own with TCP_NODELAY. It proposes an Asynchronous Operations Window
(PS3.7 D.3.3.3) where more than one is asked for; who answers none gets one request at a time. An answer belongs to a
request by its Message ID (PS3.7 9.3.1.2). Images come in series of 20.

   sender [options] ADDRESS PORT
   -a N  associations (1)          -n N  images on each (100)            -w N  requests unanswered at a time (1)
   -m N  rows and columns (128)    -c T  called AE title (STORESCP)      -t S  seconds to wait for an answer (60)
   -u U  root of the UIDs          -l    prints each UID that was answered 0x0000

Prints one line of JSON: images, seconds from the first request to the last answer, images_per_s, window (what was
negotiated, the smallest), refused (how often each status other than 0x0000 was answered). Exit code 0: every image was
answered 0x0000; 1: some were not; 2: an association failed, and standard error says how. */
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#define CT_IMAGE_STORAGE "1.2.840.10008.5.1.4.1.1.2"
#define EXPLICIT_VR_LITTLE_ENDIAN "1.2.840.10008.1.2.1"
enum { MAX_ASSOCIATIONS = 256, MAX_WINDOW = 1024, LONGEST_PDU = 131072, SERIES = 20, UID = 64, STATUSES = 65536 };

static int associations = 1, images = 100, window = 1, matrix = 128, timeout_s = 60;
static bool list;
static const char *called = "STORESCP", *root;
static struct sockaddr_in address = {.sin_family = AF_INET};
static pthread_barrier_t barrier; /* all are associated; all are answered; the clock is read in between */
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static long refused[STATUSES]; /* by status, under the lock */
static int smallest_window = MAX_WINDOW;

struct association {
    int number, fd, window;
    size_t max_pdu;                             /* bytes that a P-DATA-TF PDU of ours may have after its own length */
    uint8_t *image;                             /* one C-STORE request as it goes over the wire, PDUs and all */
    size_t size, written;                       /* of the image */
    uint8_t *message_id, *uids[2], *series_uid; /* what differs from image to image, in there */
    int begun, sent, answered;
    int waiting[STATUSES];                      /* by Message ID: the image's number from 1, 0 for none */
    uint8_t in[65536], command[1024];
    size_t in_size, command_size;
};

static void fail(const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    vfprintf(stderr, format, arguments);
    va_end(arguments);
    fputc('\n', stderr);
    fflush(stdout); /* what was acknowledged stays so */
    _exit(2);
}

/* --- encoding -------------------------------------------------------------------------------------------------- */

struct bytes { uint8_t *at; size_t size; };

static uint8_t *put(struct bytes *to, const void *what, size_t size)
{
    uint8_t *place = to->at + to->size;
    memcpy(place, what, size);
    to->size += size;
    return place;
}

static void put_big(struct bytes *to, uint32_t value, int size)
{
    for (int n = size - 1; n >= 0; n--)
        put(to, &(uint8_t){value >> 8 * n}, 1);
}

static uint8_t *put_little(struct bytes *to, uint32_t value, int size)
{
    uint8_t *place = to->at + to->size;
    for (int n = 0; n < size; n++)
        put(to, &(uint8_t){value >> 8 * n}, 1);
    return place;
}

static uint32_t big(const uint8_t *at, int size)
{
    uint32_t value = 0;
    while (size--)
        value = value << 8 | *at++;
    return value;
}

static uint32_t little(const uint8_t *at, int size)
{
    uint32_t value = 0;
    while (size--)
        value = value << 8 | at[size];
    return value;
}

/* An item of an A-ASSOCIATE PDU, PS3.8 9.3.2. */
static void put_item(struct bytes *to, int kind, const void *value, size_t size)
{
    put_big(to, kind << 8, 2);
    put_big(to, size, 2);
    put(to, value, size);
}

/* An element of a command set: implicit VR little endian, PS3.7 6.3. Returns where its value is. */
static uint8_t *put_command(struct bytes *to, int element, const void *value, size_t size)
{
    put_little(to, 0x0000, 2);
    put_little(to, element, 2);
    put_little(to, size + size % 2, 4);
    uint8_t *place = put(to, value, size);
    put(to, "", size % 2);
    return place;
}

/* An element of a data set with a short VR: explicit VR little endian, PS3.5 7.1.2; a text. */
static uint8_t *put_text(struct bytes *to, uint32_t tag, const char *vr, const char *value)
{
    size_t size = strlen(value);
    put_little(to, tag >> 16, 2);
    put_little(to, tag, 2);
    put(to, vr, 2);
    put_little(to, size + size % 2, 2);
    uint8_t *place = put(to, value, size);
    put(to, vr[0] == 'U' ? "" : " ", size % 2);
    return place;
}

static void put_number(struct bytes *to, uint32_t tag, int value)
{
    put_little(to, tag >> 16, 2);
    put_little(to, tag, 2);
    put(to, "US", 2);
    put_little(to, 2, 2);
    put_little(to, value, 2);
}

/* --- association ----------------------------------------------------------------------------------------------- */

static void write_all(int fd, const uint8_t *at, size_t size)
{
    while (size) {
        ssize_t n = send(fd, at, size, MSG_NOSIGNAL);
        if (n <= 0)
            fail("cannot write: %s", strerror(errno));
        at += n;
        size -= n;
    }
}

/* Returns once a whole PDU is at the beginning of the buffer: its size. */
static size_t read_pdu(struct association *a)
{
    for (;;) {
        if (a->in_size >= 6 && a->in_size - 6 >= big(a->in + 2, 4))
            return 6 + big(a->in + 2, 4);
        if (a->in_size == sizeof a->in)
            fail("a PDU of more than %zu bytes", sizeof a->in);
        ssize_t n = recv(a->fd, a->in + a->in_size, sizeof a->in - a->in_size, 0);
        if (n < 0)
            fail(errno == EAGAIN ? "no answer for %d s" : "cannot read", timeout_s);
        if (n == 0)
            fail("the peer closed the connection");
        a->in_size += n;
    }
}

static void forget(struct association *a, size_t size)
{
    a->in_size -= size;
    memmove(a->in, a->in + size, a->in_size);
}

static void request_association(struct association *a)
{
    uint8_t body[1024], inner[512], title[17];
    struct bytes pdu = {body, 0}, items = {inner, 0};
    put_big(&pdu, 0x0100, 2);
    put_big(&pdu, 0, 4); /* the length, set below */
    put_big(&pdu, 1 << 16, 4);
    snprintf((char *)title, sizeof title, "%-16.16s", called);
    put(&pdu, title, 16);
    put(&pdu, "SENDER          ", 16);
    put(&pdu, (uint8_t[32]){0}, 32);
    put_item(&pdu, 0x10, "1.2.840.10008.3.1.1.1", 21);
    put_big(&items, 1 << 24, 4);
    put_item(&items, 0x30, CT_IMAGE_STORAGE, strlen(CT_IMAGE_STORAGE));
    put_item(&items, 0x40, EXPLICIT_VR_LITTLE_ENDIAN, strlen(EXPLICIT_VR_LITTLE_ENDIAN));
    put_item(&pdu, 0x20, inner, items.size);
    items.size = 0;
    put_item(&items, 0x51, (uint8_t[]){0, 1, 0, 0}, 4); /* 65536: the longest PDU that we read */
    put_item(&items, 0x52, "1.2.826.0.1.3680043.8.498.1", 27);
    if (window > 1) /* PS3.7 table D.3-7: operations that we invoke, and perform */
        put_item(&items, 0x53, (uint8_t[]){window >> 8, window, 0, 1}, 4);
    put_item(&pdu, 0x50, inner, items.size);
    size_t size = pdu.size;
    pdu.size = 2;
    put_big(&pdu, size - 6, 4);
    write_all(a->fd, body, size);
}

/* Reads an A-ASSOCIATE-AC, PS3.8 9.3.3. Without an item 0x53 the window is 1; a 0 in it means any (PS3.7 D.3.3.3). */
static void read_acceptance(struct association *a)
{
    size_t size = read_pdu(a);
    if (a->in[0] == 3)
        fail("the association was rejected: result %d, source %d, reason %d", a->in[7], a->in[8], a->in[9]);
    if (a->in[0] != 2 || size < 74)
        fail("PDU 0x%02X in place of an A-ASSOCIATE-AC", a->in[0]);
    bool accepted = false;
    a->window = 1;
    a->max_pdu = 0;
    for (size_t at = 74; at + 4 <= size;) {
        int kind = a->in[at];
        size_t length = big(a->in + at + 2, 2);
        if (kind == 0x50)
            length = 0; /* its items are read as if they stood beside it */
        if (at + 4 + length > size)
            fail("item 0x%02X is longer than its PDU", kind);
        const uint8_t *value = a->in + at + 4;
        if (kind == 0x21 && length >= 4)
            accepted = value[0] == 1 && value[2] == 0;
        else if (kind == 0x51 && length == 4)
            a->max_pdu = big(value, 4);
        else if (kind == 0x53 && length == 4) {
            int invoked = big(value, 2);
            a->window = invoked && invoked < window ? invoked : window;
        }
        at += 4 + length;
    }
    if (!accepted)
        fail("the presentation context was not accepted");
    if (a->max_pdu == 0 || a->max_pdu > LONGEST_PDU)
        a->max_pdu = LONGEST_PDU;
    if (a->max_pdu < 4096)
        fail("the peer takes PDUs of %zu bytes; this sender needs 4096", a->max_pdu);
    forget(a, size);
}

/* --- images ---------------------------------------------------------------------------------------------------- */

/* A P-DATA-TF PDU with one fragment, PS3.8 9.3.5. Returns where the fragment is. */
static uint8_t *put_fragment(struct bytes *to, int control, const uint8_t *value, size_t size)
{
    put_big(to, 0x0400, 2);
    put_big(to, size + 6, 4);
    put_big(to, size + 2, 4);
    put_big(to, 1 << 8 | control, 2);
    return put(to, value, size);
}

/* Makes the first image; the others differ in numbers of fixed width, which `next_image` writes into it. */
static void make_image(struct association *a)
{
    size_t pixels = 2 * (size_t)matrix * matrix;
    char uid[UID + 1], study[UID + 1], series[UID + 1];
    snprintf(uid, sizeof uid, "%s.%d.1000000000", root, 100 + a->number);
    snprintf(study, sizeof study, "%s.%d", root, 100 + a->number);
    snprintf(series, sizeof series, "%s.%d.2000000000", root, 100 + a->number);

    struct bytes command = {malloc(1024), 0}, ds = {calloc(1, pixels + 2048), 0};
    put_command(&command, 0x0000, (uint8_t[4]){0}, 4); /* the group's length, set below */
    put_command(&command, 0x0002, CT_IMAGE_STORAGE, strlen(CT_IMAGE_STORAGE));
    put_command(&command, 0x0100, (uint8_t[]){1, 0}, 2); /* C-STORE-RQ */
    size_t message_id = put_command(&command, 0x0110, (uint8_t[]){0, 0}, 2) - command.at;
    put_command(&command, 0x0700, (uint8_t[]){0, 0}, 2);
    put_command(&command, 0x0800, (uint8_t[]){0, 0}, 2);
    size_t in_command = put_command(&command, 0x1000, uid, strlen(uid)) - command.at;
    for (int n = 0; n < 4; n++)
        command.at[8 + n] = (command.size - 12) >> 8 * n;

    put_text(&ds, 0x00080016, "UI", CT_IMAGE_STORAGE);
    size_t in_ds = put_text(&ds, 0x00080018, "UI", uid) - ds.at;
    put_text(&ds, 0x00080060, "CS", "CT");
    put_text(&ds, 0x00100010, "PN", "Test^One");
    put_text(&ds, 0x00100020, "LO", "P1");
    put_text(&ds, 0x0020000D, "UI", study);
    size_t of_series = put_text(&ds, 0x0020000E, "UI", series) - ds.at;
    put_number(&ds, 0x00280010, matrix);
    put_number(&ds, 0x00280011, matrix);
    put_number(&ds, 0x00280100, 16);
    put(&ds, "\xE0\x7F\x10\x00OW\0\0", 8);
    put_little(&ds, pixels, 4);
    ds.size += pixels; /* zeros */

    size_t most = a->max_pdu - 6, fragments = ds.size / most + 2;
    struct bytes image = {malloc(command.size + ds.size + 12 * fragments), 0};
    uint8_t *there = put_fragment(&image, 0x03, command.at, command.size), *first = NULL;
    a->message_id = there + message_id;
    a->uids[0] = there + in_command + strlen(uid) - 10;
    for (size_t at = 0; at < ds.size; at += most) {
        bool last = ds.size - at <= most;
        there = put_fragment(&image, last ? 0x02 : 0x00, ds.at + at, last ? ds.size - at : most);
        first = first ? first : there;
    }
    a->uids[1] = first + in_ds + strlen(uid) - 10;
    a->series_uid = first + of_series + strlen(series) - 10;
    a->image = image.at;
    a->size = a->written = image.size;
    free(command.at);
    free(ds.at);
}

static void write_number(uint8_t *place, unsigned number)
{
    char digits[11];
    snprintf(digits, sizeof digits, "%010u", number);
    memcpy(place, digits, 10);
}

static void next_image(struct association *a)
{
    int id = a->begun % 65535 + 1;
    a->message_id[0] = id;
    a->message_id[1] = id >> 8;
    write_number(a->uids[0], 1000000000u + a->begun);
    write_number(a->uids[1], 1000000000u + a->begun);
    write_number(a->series_uid, 2000000000u + a->begun / SERIES);
    a->waiting[id] = ++a->begun;
    a->written = 0;
}

/* Takes one C-STORE-RSP, PS3.7 9.3.1.2. */
static void take_answer(struct association *a)
{
    int field = -1, id = -1, status = -1;
    for (size_t at = 0; at + 8 <= a->command_size;) {
        size_t length = little(a->command + at + 4, 4);
        if (length > a->command_size - at - 8)
            fail("an element is longer than its command");
        if (length == 2) {
            int value = little(a->command + at + 8, 2);
            switch (little(a->command + at, 2) ? -1 : (int)little(a->command + at + 2, 2)) {
            case 0x0100: field = value; break;
            case 0x0120: id = value; break;
            case 0x0900: status = value; break;
            }
        }
        at += 8 + length;
    }
    a->command_size = 0;
    if (field != 0x8001 || id < 0 || status < 0)
        fail("a command 0x%04X in place of a C-STORE-RSP", field);
    if (!a->waiting[id] || a->waiting[id] > a->sent)
        fail("an answer to message %d, which waits for none", id);
    if (status) {
        pthread_mutex_lock(&lock);
        refused[status]++;
        pthread_mutex_unlock(&lock);
    } else if (list) {
        printf("%s.%d.%010u\n", root, 100 + a->number, 1000000000u + a->waiting[id] - 1);
    }
    a->waiting[id] = 0;
    a->answered++;
}

/* Takes the answers of one PDU; commands may come in fragments. */
static void take_pdu(struct association *a, size_t size)
{
    if (a->in[0] == 7)
        fail("the peer aborted: source %d, reason %d", a->in[8], a->in[9]);
    if (a->in[0] != 4)
        fail("PDU 0x%02X in place of an answer", a->in[0]);
    for (size_t at = 6; at < size;) {
        if (size - at < 6 || big(a->in + at, 4) < 2 || big(a->in + at, 4) > size - at - 4)
            fail("a PDV is longer than its PDU");
        size_t length = big(a->in + at, 4) - 2;
        int control = a->in[at + 5];
        if (!(control & 1) || a->command_size + length > sizeof a->command)
            fail("a data set or a long command in place of an answer");
        memcpy(a->command + a->command_size, a->in + at + 6, length);
        a->command_size += length;
        if (control & 2)
            take_answer(a);
        at += 6 + length;
    }
    forget(a, size);
}

/* Writes as much as the window and the socket allow. Returns if there is more that the socket does not take yet. */
static bool write_some(struct association *a)
{
    for (;;) {
        if (a->written == a->size) {
            a->sent = a->begun;
            if (a->begun == images || a->begun - a->answered >= a->window)
                return false;
            next_image(a);
        }
        ssize_t n = send(a->fd, a->image + a->written, a->size - a->written, MSG_DONTWAIT | MSG_NOSIGNAL);
        if (n < 0 && errno != EAGAIN)
            fail("cannot write: %s", strerror(errno));
        if (n < 0)
            return true;
        a->written += n;
    }
}

static void send_images(struct association *a)
{
    while (a->answered < images) {
        if (write_some(a)) {
            struct pollfd wanted = {a->fd, POLLIN | POLLOUT, 0};
            if (poll(&wanted, 1, 1000 * timeout_s) == 0)
                fail("the peer read nothing for %d s", timeout_s);
            if (!(wanted.revents & POLLIN))
                continue;
        }
        take_pdu(a, read_pdu(a));
        while (a->in_size >= 6 && a->in_size - 6 >= big(a->in + 2, 4)) /* what came with it */
            take_pdu(a, read_pdu(a));
    }
}

/* --- program --------------------------------------------------------------------------------------------------- */

static void *run(void *argument)
{
    struct association *a = argument;
    a->fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    setsockopt(a->fd, IPPROTO_TCP, TCP_NODELAY, &(int){1}, sizeof(int));
    setsockopt(a->fd, SOL_SOCKET, SO_RCVTIMEO, &(struct timeval){timeout_s, 0}, sizeof(struct timeval));
    if (connect(a->fd, (struct sockaddr *)&address, sizeof address))
        fail("cannot connect: %s", strerror(errno));
    request_association(a);
    read_acceptance(a);
    make_image(a);
    pthread_mutex_lock(&lock);
    smallest_window = a->window < smallest_window ? a->window : smallest_window;
    pthread_mutex_unlock(&lock);
    pthread_barrier_wait(&barrier);
    send_images(a);
    pthread_barrier_wait(&barrier);
    write_all(a->fd, (uint8_t[]){5, 0, 0, 0, 0, 4, 0, 0, 0, 0}, 10);
    read_pdu(a);
    if (a->in[0] != 6)
        fail("PDU 0x%02X in place of an A-RELEASE-RP", a->in[0]);
    close(a->fd);
    return NULL;
}

static double now_s(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec + t.tv_nsec / 1e9;
}

static int number(const char *text, int most)
{
    int value = atoi(text);
    if (value < 1 || value > most)
        fail("%s is not between 1 and %d", text, most);
    return value;
}

int main(int argc, char **argv)
{
    char default_root[UID];
    struct timespec t;
    clock_gettime(CLOCK_REALTIME, &t);
    snprintf(default_root, sizeof default_root, "1.2.826.0.1.3680043.8.498.%ld%09ld", (long)t.tv_sec, t.tv_nsec);
    root = default_root;
    for (int option; (option = getopt(argc, argv, "a:n:w:m:c:t:u:l")) != -1;)
        switch (option) {
        case 'a': associations = number(optarg, MAX_ASSOCIATIONS); break;
        case 'n': images = number(optarg, 100000000); break;
        case 'w': window = number(optarg, MAX_WINDOW); break;
        case 'm': matrix = number(optarg, 16384); break;
        case 'c': called = optarg; break;
        case 't': timeout_s = number(optarg, 86400); break;
        case 'u': root = optarg; break;
        case 'l': list = true; break;
        default: return 2;
        }
    if (argc - optind != 2 || !inet_aton(argv[optind], &address.sin_addr))
        fail("sender [-a N] [-n N] [-w N] [-m N] [-c TITLE] [-t S] [-u ROOT] [-l] ADDRESS PORT");
    if (strlen(root) > UID - 15)
        fail("the root may have %d characters", UID - 15);
    address.sin_port = htons(number(argv[optind + 1], 65535));

    pthread_t threads[MAX_ASSOCIATIONS];
    pthread_barrier_init(&barrier, NULL, associations + 1);
    for (int n = 0; n < associations; n++) {
        struct association *a = calloc(1, sizeof *a);
        a->number = n;
        if (pthread_create(&threads[n], NULL, run, a))
            fail("cannot start %d threads", associations);
    }
    pthread_barrier_wait(&barrier);
    double began = now_s();
    pthread_barrier_wait(&barrier);
    double took_s = now_s() - began;
    for (int n = 0; n < associations; n++)
        pthread_join(threads[n], NULL);

    long all = (long)associations * images;
    printf("{\"images\": %ld, \"seconds\": %.6f, \"images_per_s\": %.1f, \"window\": %d, \"refused\": {", all, took_s,
           all / took_s, smallest_window);
    bool any = false;
    for (int status = 0; status < STATUSES; status++)
        if (refused[status]) {
            printf("%s\"0x%04X\": %ld", any ? ", " : "", status, refused[status]);
            any = true;
        }
    puts("}}");
    return any;
}
