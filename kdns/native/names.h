/* What names.c and table.c share. */
#ifndef KD_NAMES_H
#define KD_NAMES_H

#include "siphash.h"
#include "table.h"

/* Fills a secret from the kernel; -1: it gives none. */
int kd_draw_secret(struct kd_secret *secret);

#endif
