/*
 * An open-loop load generator for DNS over UDP: what dnsperf cannot tell.
 *
 *   load [--realtime] ADDRESS PORT FILE SKIP RATE SECONDS SOCKETS WAIT
 *
 * Asks the questions of FILE (lines "name type", as for dnsperf; from the one after SKIP, and again from the first when
 * they run out) at RATE per second for SECONDS, from SOCKETS source ports, waits at most WAIT seconds for what is still
 * owed, and prints one JSON object.  Talks to loopback addresses only.
 *
 * Open loop: question n is due at n/RATE, whatever the server does, and its latency counts from then, not from when it
 * could be sent.  A server that stops for a second has a second of late answers, not one ("coordinated omission").  How
 * late we were ourselves is told apart ("late_us"), and what a reply waits in our own socket does not count.
 *
 * A reply counts if ID, question and source are those of a query that is still open on its socket; everything else is
 * "wrong".  What has no reply at the end is "lost", and in the percentiles (not in the mean and the histogram) as slow
 * as WAIT; what had none when the last question went out is "owed".
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <poll.h>
#include <sched.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <time.h>

enum { BATCH = 32, SIZE = 4096, HEADER = 12, QUESTION = 255 + 4, SOCKETS = 64, IDS = 65536, RCODES = 16 };
enum { FINE = 7, BUCKETS = 64 << FINE }; /* 128 buckets for each power of two: steps of less than 1 % */
static const double MAX_RATE = 5e6, MAX_SECONDS = 600, MAX_WAIT = 10, MAX_QUESTIONS = 2e7;
static const int64_t SECOND = 1000000000;

struct question {
    uint32_t at;
    uint16_t length;
};

/* A query that has no reply yet: when it was due, and which question it was; `due` 0 when there is none. */
struct open_query {
    int64_t due;
    uint32_t question;
};

struct source {
    int fd;
    uint16_t next_id;
    struct open_query *open;
};

static struct question *questions;
static unsigned char *text;
static uint32_t question_count;
static struct source sources[SOCKETS];
static struct pollfd polled[SOCKETS];
static int source_count;
static uint64_t sent, refused, answered, owed, wrong, rcodes[RCODES];
static uint64_t latency[BUCKETS], late[BUCKETS];
static int64_t latency_max, late_max;
static double latency_sum;

static void fail(const char *format, ...)
{
    va_list values;

    va_start(values, format);
    fputs("load: ", stderr);
    vfprintf(stderr, format, values);
    fputc('\n', stderr);
    exit(2);
}

static int64_t clock_of(clockid_t clock)
{
    struct timespec now;

    clock_gettime(clock, &now);
    return now.tv_sec * SECOND + now.tv_nsec;
}

/* --- histograms ------------------------------------------------------------------------------------------------- */

static int bucket(int64_t value)
{
    uint64_t v = value < 1 ? 1 : (uint64_t)value;
    int exponent = 63 - __builtin_clzll(v);

    if (exponent < FINE)
        return (int)v;
    return ((exponent - FINE + 1) << FINE) + (int)((v >> (exponent - FINE)) & ((1 << FINE) - 1));
}

/* The largest value that falls into a bucket, in nanoseconds. */
static int64_t upper(int index)
{
    int exponent = (index >> FINE) + FINE - 1;

    if (index < 1 << FINE)
        return index;
    return ((((int64_t)1 << FINE) + (index & ((1 << FINE) - 1)) + 1) << (exponent - FINE)) - 1;
}

/* The value that the share `part` of all values does not exceed, in microseconds; 0 without values. */
static double percentile(const uint64_t *histogram, uint64_t total, int64_t most, double part)
{
    uint64_t wanted = (uint64_t)(part * (double)total + 0.999999), seen = 0;

    for (int i = 0; i < BUCKETS; i++) {
        seen += histogram[i];
        if (seen && seen >= wanted)
            return (double)(upper(i) < most ? upper(i) : most) / 1e3;
    }
    return 0;
}

static void print_percentiles(const char *name, const uint64_t *histogram, uint64_t total, int64_t most)
{
    printf("\"%s\": {\"p50\": %.1f, \"p90\": %.1f, \"p99\": %.1f, \"p99.9\": %.1f, \"max\": %.1f}", name,
           percentile(histogram, total, most, 0.5), percentile(histogram, total, most, 0.9),
           percentile(histogram, total, most, 0.99), percentile(histogram, total, most, 0.999), (double)most / 1e3);
}

/* --- questions -------------------------------------------------------------------------------------------------- */

static int type_of(const char *word)
{
    static const struct {
        const char *name;
        int number;
    } types[] = {{"A", 1},    {"NS", 2},    {"CNAME", 5}, {"SOA", 6},  {"PTR", 12},
                 {"MX", 15}, {"TXT", 16}, {"AAAA", 28}, {"SRV", 33}, {"ANY", 255}};

    for (size_t i = 0; i < sizeof types / sizeof *types; i++)
        if (!strcasecmp(word, types[i].name))
            return types[i].number;
    return 0;
}

/* Write the question of a line to `out`; returns its length, 0 for what is none. */
static size_t encode(const char *name, const char *type, unsigned char *out)
{
    size_t at = 1, label = 0;
    int number = type_of(type);

    for (; *name; name++) {
        if (*name == '.') {
            if (at == label + 1 && (name[1] || label))
                return 0;
            if (at == label + 1)
                continue; /* the root */
            out[label] = (unsigned char)(at - label - 1);
            label = at++;
        } else if (at - label > 63 || at > 253) /* 255 octets in all, the root's included */
            return 0;
        else
            out[at++] = (unsigned char)*name;
    }
    if (at > label + 1) {
        out[label] = (unsigned char)(at - label - 1);
        label = at++;
    }
    out[label] = 0;
    if (!number)
        return 0;
    memcpy(out + label + 1, (unsigned char[]){0, (unsigned char)number, 0, 1}, 4);
    return label + 5;
}

static void read_questions(const char *path)
{
    FILE *file = fopen(path, "r");
    char line[512], name[300], type[20];
    size_t room = 1 << 20, used = 0, places = 1 << 14;

    if (!file)
        fail("%s: %s", path, strerror(errno));
    text = malloc(room);
    questions = malloc(places * sizeof *questions);
    for (int number = 1; fgets(line, sizeof line, file); number++) {
        size_t length;

        if (used + QUESTION > room)
            text = realloc(text, room *= 2);
        if (question_count == places)
            questions = realloc(questions, (places *= 2) * sizeof *questions);
        if (!text || !questions || question_count >= MAX_QUESTIONS || used > UINT32_MAX - SIZE)
            fail("%s: too many questions", path);
        if (sscanf(line, "%299s %19s", name, type) != 2 || !(length = encode(name, type, text + used)))
            fail("%s:%d: not a question: %s", path, number, line);
        questions[question_count++] = (struct question){(uint32_t)used, (uint16_t)length};
        used += length;
    }
    fclose(file);
    if (!question_count)
        fail("%s: no questions", path);
}

/* --- sockets ---------------------------------------------------------------------------------------------------- */

static void open_sockets(const char *address, int port)
{
    struct sockaddr_in server = {.sin_family = AF_INET, .sin_port = htons((uint16_t)port)};
    int buffer = 8 << 20, on = 1;

    if (inet_pton(AF_INET, address, &server.sin_addr) != 1 || ntohl(server.sin_addr.s_addr) >> 24 != 127)
        fail("%s is no address in 127.0.0.0/8: this generator talks to loopback only", address);
    for (int i = 0; i < source_count; i++) {
        int fd = socket(AF_INET, SOCK_DGRAM | SOCK_NONBLOCK, 0);

        if (fd < 0 || connect(fd, (struct sockaddr *)&server, sizeof server))
            fail("socket: %s", strerror(errno));
        if (setsockopt(fd, SOL_SOCKET, SO_RCVBUFFORCE, &buffer, sizeof buffer))
            setsockopt(fd, SOL_SOCKET, SO_RCVBUF, &buffer, sizeof buffer);
        if (setsockopt(fd, SOL_SOCKET, SO_TIMESTAMPNS, &on, sizeof on))
            fail("SO_TIMESTAMPNS: %s", strerror(errno));
        sources[i] = (struct source){fd, (uint16_t)(i * 7919), calloc(IDS, sizeof *sources[i].open)};
        if (!sources[i].open)
            fail("no memory");
        polled[i] = (struct pollfd){fd, POLLIN, 0};
    }
}

/* Send `count` queries from one source, the first of them due at `start + sent * step`. */
static void send_batch(struct source *from, int count, uint64_t skip, int64_t start, double step)
{
    static unsigned char headers[BATCH][HEADER];
    struct mmsghdr messages[BATCH];
    struct iovec parts[BATCH][2];
    int64_t now = clock_of(CLOCK_MONOTONIC);

    for (int i = 0; i < count; i++) {
        uint32_t which = (uint32_t)((skip + sent + (uint64_t)i) % question_count);
        int64_t due = start + (int64_t)((double)(sent + (uint64_t)i) * step);
        uint16_t id = from->next_id++;

        from->open[id] = (struct open_query){due, which};
        late[bucket(now - due)]++;
        if (now - due > late_max)
            late_max = now - due;
        memcpy(headers[i], (unsigned char[HEADER]){(unsigned char)(id >> 8), (unsigned char)id, 1, 0, 0, 1}, HEADER);
        parts[i][0] = (struct iovec){headers[i], HEADER};
        parts[i][1] = (struct iovec){text + questions[which].at, questions[which].length};
        messages[i] = (struct mmsghdr){.msg_hdr = {.msg_iov = parts[i], .msg_iovlen = 2}};
    }
    for (int done = 0, failures = 0; done < count;) {
        int more = sendmmsg(from->fd, messages + done, (unsigned)(count - done), 0);

        if (more > 0) {
            done += more;
            failures = 0;
        } else if (errno != EINTR && ++failures > 2) {
            /* The first error may be about an earlier packet (connection refused); a third one is about this. */
            refused++;
            done++;
            failures = 0;
        }
    }
    sent += (uint64_t)count;
}

/* Count a reply that the kernel had `waited` nanoseconds ago. */
static void take(struct source *to, const unsigned char *packet, size_t length, int64_t now, int64_t waited)
{
    struct open_query *query;
    int64_t spent;

    if (length < HEADER) {
        wrong++;
        return;
    }
    query = &to->open[packet[0] << 8 | packet[1]];
    if (!query->due || !(packet[2] & 0x80) || packet[4] || packet[5] != 1 ||
        length < (size_t)HEADER + questions[query->question].length ||
        memcmp(packet + HEADER, text + questions[query->question].at, questions[query->question].length)) {
        wrong++;
        return;
    }
    spent = now - waited - query->due;
    query->due = 0;
    answered++;
    rcodes[packet[3] & 15]++;
    latency[bucket(spent)]++;
    latency_sum += (double)spent;
    if (spent > latency_max)
        latency_max = spent;
}

static void receive(struct source *to)
{
    static unsigned char packets[BATCH][SIZE];
    static char controls[BATCH][CMSG_SPACE(sizeof(struct timespec))];
    struct mmsghdr messages[BATCH];
    struct iovec parts[BATCH];
    int64_t now, wall;
    int count;

    do {
        for (int i = 0; i < BATCH; i++) {
            parts[i] = (struct iovec){packets[i], SIZE};
            messages[i].msg_hdr = (struct msghdr){.msg_iov = &parts[i],
                                                  .msg_iovlen = 1,
                                                  .msg_control = controls[i],
                                                  .msg_controllen = sizeof controls[i]};
        }
        count = recvmmsg(to->fd, messages, BATCH, MSG_DONTWAIT, NULL);
        now = clock_of(CLOCK_MONOTONIC);
        wall = clock_of(CLOCK_REALTIME);
        for (int i = 0; i < count; i++) {
            struct cmsghdr *control = CMSG_FIRSTHDR(&messages[i].msg_hdr);
            int64_t waited = 0;

            if (control && control->cmsg_level == SOL_SOCKET && control->cmsg_type == SCM_TIMESTAMPNS) {
                struct timespec stamp;

                memcpy(&stamp, CMSG_DATA(control), sizeof stamp);
                waited = wall - (stamp.tv_sec * SECOND + stamp.tv_nsec);
            }
            /* A wall clock that was set meanwhile is no reason for odd figures. */
            take(to, packets[i], messages[i].msg_len, now, waited > 0 && waited < SECOND ? waited : 0);
        }
    } while (count == BATCH);
}

/* --- the run ---------------------------------------------------------------------------------------------------- */

/* Wait for a packet, at most until `until`; receive what has come. */
static void wait_and_receive(int64_t until)
{
    int64_t left = until - clock_of(CLOCK_MONOTONIC);
    struct timespec pause = {0, 0};

    if (left > 0)
        pause = (struct timespec){left / SECOND, left % SECOND};
    if (ppoll(polled, (nfds_t)source_count, &pause, NULL) <= 0)
        return;
    for (int i = 0; i < source_count; i++)
        if (polled[i].revents)
            receive(&sources[i]);
}

static double number(const char *word, const char *name, double least, double most)
{
    char *end;
    double value = strtod(word, &end);

    if (end == word || *end || !(value >= least && value <= most))
        fail("%s must be a number from %g to %g, not '%s'", name, least, most, word);
    return value;
}

static void report(double rate, double seconds, int realtime, int64_t wait)
{
    static const char *const names[RCODES] = {"NOERROR", "FORMERR", "SERVFAIL", "NXDOMAIN", "NOTIMP", "REFUSED"};
    const char *comma = "";

    printf("{\"offered\": %.1f, \"rate\": %.1f, \"seconds\": %.6f, \"sent\": %llu, \"answered\": %llu, ", rate,
           seconds > 0 ? (double)sent / seconds : 0, seconds, (unsigned long long)sent, (unsigned long long)answered);
    printf("\"lost\": %llu, \"owed\": %llu, \"wrong\": %llu, \"refused\": %llu, \"realtime\": %s, \"rcodes\": {",
           (unsigned long long)(sent - answered), (unsigned long long)owed, (unsigned long long)wrong,
           (unsigned long long)refused, realtime ? "true" : "false");
    for (int i = 0; i < RCODES; i++)
        if (rcodes[i]) {
            if (names[i])
                printf("%s\"%s\": %llu", comma, names[i], (unsigned long long)rcodes[i]);
            else
                printf("%s\"RCODE%d\": %llu", comma, i, (unsigned long long)rcodes[i]);
            comma = ", ";
        }
    printf("}, \"mean_us\": %.1f, \"histogram\": [", answered ? latency_sum / (double)answered / 1e3 : 0);
    comma = "";
    for (int i = 0; i < BUCKETS; i++)
        if (latency[i]) {
            printf("%s[%.3f, %llu]", comma, (double)upper(i) / 1e3, (unsigned long long)latency[i]);
            comma = ", ";
        }
    printf("], ");
    if (sent > answered) {
        latency[bucket(wait)] += sent - answered;
        latency_max = latency_max > wait ? latency_max : wait;
    }
    print_percentiles("latency_us", latency, sent, latency_max);
    printf(", ");
    print_percentiles("late_us", late, sent, late_max);
    printf("}\n");
}

int main(int argc, char **argv)
{
    int realtime = argc > 1 && !strcmp(argv[1], "--realtime"), turn = 0;
    double rate, seconds, step;
    uint64_t skip, count;
    int64_t start, stop, end, wait;

    argc -= realtime;
    argv += realtime;
    if (argc != 9)
        fail("usage: load [--realtime] ADDRESS PORT FILE SKIP RATE SECONDS SOCKETS WAIT");
    skip = (uint64_t)number(argv[4], "SKIP", 0, MAX_QUESTIONS);
    rate = number(argv[5], "RATE", 1, MAX_RATE);
    seconds = number(argv[6], "SECONDS", 0.001, MAX_SECONDS);
    source_count = (int)number(argv[7], "SOCKETS", 1, SOCKETS);
    wait = (int64_t)(number(argv[8], "WAIT", 0, MAX_WAIT) * (double)SECOND);
    open_sockets(argv[1], (int)number(argv[2], "PORT", 1, 65535));
    read_questions(argv[3]);
    prctl(PR_SET_TIMERSLACK, 1UL);
    /* We sleep between packets, so this starves nobody at rates that leave us idle; others do not get to delay us. */
    realtime = realtime && !sched_setscheduler(0, SCHED_FIFO, &(struct sched_param){.sched_priority = 1});

    count = (uint64_t)(rate * seconds);
    count = count ? count : 1;
    step = (double)SECOND / rate;
    start = clock_of(CLOCK_MONOTONIC);
    /* A machine on which the rate cannot be sent is not asked to for ever. */
    end = start + (int64_t)(2 * seconds * (double)SECOND);
    while (sent < count) {
        int64_t now = clock_of(CLOCK_MONOTONIC), due = start + (int64_t)((double)sent * step);
        uint64_t ready = now < due ? 0 : (uint64_t)((double)(now - start) / step) + 1 - sent;

        if (now > end)
            break;
        ready = ready > count - sent ? count - sent : ready;
        if (ready) {
            send_batch(&sources[turn], ready > BATCH ? BATCH : (int)ready, skip, start, step);
            turn = (turn + 1) % source_count;
        }
        wait_and_receive(start + (int64_t)((double)sent * step));
    }
    seconds = (double)(clock_of(CLOCK_MONOTONIC) - start) / (double)SECOND;
    owed = sent - answered;
    stop = clock_of(CLOCK_MONOTONIC) + wait;
    while (answered < sent && clock_of(CLOCK_MONOTONIC) < stop)
        wait_and_receive(stop);
    report(rate, seconds, realtime, wait);
    return 0;
}
