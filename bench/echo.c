/*
 * The floor under every DNS server on this machine: receive a batch of datagrams, change as little as possible, send
 * them back.  Two modes:
 *
 *   echo PORT           set QR and return the packet: what the kernel and the system calls cost
 *   echo PORT answer    also append the A or AAAA record asked for, so that it can stand in for an upstream
 *
 * Listens on 127.0.0.1; runs until it is killed.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <netinet/in.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>

enum { BATCH = 64, SIZE = 4096, HEADER = 12 };

static unsigned char packets[BATCH][SIZE];

/* Owner: a pointer to the question; type, IN, TTL 300; 192.0.2.1 and 2001:db8::1. */
static const unsigned char a[16] = {0xc0, HEADER, 0, 1, 0, 1, 0, 0, 1, 44, 0, 4, 192, 0, 2, 1};
static const unsigned char aaaa[28] = {0xc0, HEADER, 0, 28, 0, 1, 0, 0, 1, 44, 0, 16, 0x20, 1, 13, 0xb8, [27] = 1};

/* Turn a query of `length` octets into a reply in place; returns its length, 0 for what is no query. */
static size_t reply(unsigned char *packet, size_t length, int answer)
{
    const unsigned char *record = a;
    size_t end = HEADER, size = sizeof a;

    if (length < HEADER + 5 || packet[2] & 0x80)
        return 0;
    packet[2] |= 0x80;
    if (!answer)
        return length;
    while (end < length && packet[end])
        end += 1 + packet[end];
    end += 5;
    if (end > length || length + sizeof aaaa > SIZE)
        return 0;
    packet[3] |= 0x80;
    if (packet[end - 3] == 28) {
        record = aaaa;
        size = sizeof aaaa;
    } else if (packet[end - 3] != 1)
        return length;
    packet[7] = 1;
    memmove(packet + end + size, packet + end, length - end);
    memcpy(packet + end, record, size);
    return length + size;
}

int main(int argc, char **argv)
{
    static struct mmsghdr messages[BATCH];
    static struct iovec parts[BATCH];
    static struct sockaddr_in peers[BATCH];
    struct sockaddr_in local = {.sin_family = AF_INET};
    int buffer = 4 << 20, fd = socket(AF_INET, SOCK_DGRAM, 0);

    if (argc < 2 || fd < 0) {
        fprintf(stderr, "usage: echo PORT [answer]\n");
        return 2;
    }
    local.sin_port = htons((unsigned short)atoi(argv[1]));
    local.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    setsockopt(fd, SOL_SOCKET, SO_RCVBUF, &buffer, sizeof buffer);
    if (bind(fd, (struct sockaddr *)&local, sizeof local)) {
        perror("bind");
        return 1;
    }
    for (;;) {
        int count, kept = 0;

        for (int i = 0; i < BATCH; i++) {
            parts[i] = (struct iovec){packets[i], SIZE};
            messages[i].msg_hdr = (struct msghdr){
                .msg_name = &peers[i], .msg_namelen = sizeof peers[i], .msg_iov = &parts[i], .msg_iovlen = 1};
        }
        count = recvmmsg(fd, messages, BATCH, MSG_WAITFORONE, NULL);
        for (int i = 0; i < count; i++) {
            size_t length = reply(packets[i], messages[i].msg_len, argc > 2);

            if (length) {
                parts[i].iov_len = length;
                messages[kept++].msg_hdr = messages[i].msg_hdr;
            }
        }
        for (int sent = 0; sent < kept;) {
            int more = sendmmsg(fd, messages + sent, kept - sent, 0);

            sent += more > 0 ? more : 1;
        }
    }
}
