/* This Source Code Form is subject to the terms of the Mozilla Public
 * License, v. 2.0. If a copy of the MPL was not distributed with this
 * file, You can obtain one at https://mozilla.org/MPL/2.0/. */

/* A PKCS#11 module that does harm, in the manner that the variable MANNER names. Without one it is a token with one key on
 * P-256 whose signatures are all ones. The test compiles it. */

#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/ptrace.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

typedef unsigned long ulong_t;
typedef unsigned char byte_t;

enum {
    OK = 0,
    GENERAL_ERROR = 5,
    NOT_SUPPORTED = 0x54,
    TYPE_INVALID = 0x12,
    NOT_LOGGED_IN = 0x101,
    TOO_SMALL = 0x150,
};

static int is_manner(const char *name) {
    const char *manner = getenv("MANNER");
    return manner != NULL && strcmp(manner, name) == 0;
}

static volatile int *nowhere;

static void crash(void) {
    *nowhere = 1;
}

static void hang(void) {
    for (;;) {
        sleep(1000);
    }
}

static ulong_t result_of(long result) {
    /* The test reads it as the first byte of the signature. */
    return result < 0 ? (ulong_t)errno : 0;
}

static long connect_to(int family, const void *address, socklen_t length) {
    int end = socket(family, SOCK_STREAM, 0);
    return end < 0 ? -1 : connect(end, address, length);
}

/* What a module that was taken over tries. */
static ulong_t attempt(void) {
    const char *target = getenv("TARGET");
    if (target == NULL) {
        target = "/etc/passwd";
    }
    if (is_manner("reads a file")) {
        return result_of(open(target, O_RDONLY));
    }
    if (is_manner("writes a file")) {
        return result_of(open(target, O_WRONLY | O_CREAT, 0600));
    }
    if (is_manner("lists a folder")) {
        return result_of(open("/", O_RDONLY | O_DIRECTORY));
    }
    if (is_manner("opens a device")) {
        return result_of(open("/dev/null", O_RDWR));
    }
    if (is_manner("connects to a local socket")) {
        struct sockaddr_un address = {.sun_family = AF_UNIX};
        strncpy(address.sun_path, target, sizeof(address.sun_path) - 1);
        return result_of(connect_to(AF_UNIX, &address, sizeof(address)));
    }
    if (is_manner("connects to a local socket, with `pcsc`")) {
        struct sockaddr_un address = {.sun_family = AF_UNIX};
        strncpy(address.sun_path, target, sizeof(address.sun_path) - 1);
        int end = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
        if (end < 0 || connect(end, (const void *)&address, sizeof(address)) < 0) {
            return (ulong_t)errno;
        }
        return result_of(write(end, "hello", 5) == 5 ? 0 : -1);
    }
    if (is_manner("connects over TCP")) {
        struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons(80)};
        address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
        return result_of(connect_to(AF_INET, &address, sizeof(address)));
    }
    if (is_manner("starts a program")) {
        char *arguments[] = {"/bin/true", NULL};
        return result_of(execv(arguments[0], arguments));
    }
    if (is_manner("starts a process")) {
        return result_of(fork());
    }
    if (is_manner("traces the browser")) {
        return result_of(ptrace(PTRACE_ATTACH, getppid(), NULL, NULL));
    }
    if (is_manner("signals the browser")) {
        return result_of(kill(getppid(), SIGKILL));
    }
    if (is_manner("makes code")) {
        void *memory = mmap(NULL, 4096, PROT_READ | PROT_WRITE | PROT_EXEC, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        return memory == MAP_FAILED ? (ulong_t)errno : 0;
    }
    if (is_manner("loads a library")) {
        void *memory = mmap(NULL, 4096, PROT_READ | PROT_EXEC, MAP_PRIVATE, open("/lib64/ld-linux-x86-64.so.2", O_RDONLY), 0);
        return memory == MAP_FAILED ? (ulong_t)errno : 0;
    }
    return 0;
}

static void *run_forever(void *unused) {
    (void)unused;
    for (;;) {
    }
    return NULL;
}

/* Whoever is loaded runs. */
__attribute__((constructor)) static void loaded(void) {
    if (is_manner("crashes when it is loaded")) {
        abort();
    }
    if (is_manner("hangs when it is loaded")) {
        hang();
    }
    if (is_manner("calls what it may not when it is loaded")) {
        chroot("/");
    }
    if (is_manner("connects when it is loaded")) {
        struct sockaddr_un address = {.sun_family = AF_UNIX};
        strncpy(address.sun_path, getenv("TARGET"), sizeof(address.sun_path) - 1);
        if (connect_to(AF_UNIX, &address, sizeof(address)) == 0) {
            /* The test sees it at the other end. */
            sleep(1);
        }
    }
    if (is_manner("reads when it is loaded") && open(getenv("TARGET"), O_RDONLY) >= 0) {
        /* The test would see that the worker hangs. */
        hang();
    }
}

static ulong_t not_supported(void) { return NOT_SUPPORTED; }

static ulong_t initialize(void *arguments) {
    (void)arguments;
    if (is_manner("crashes in C_Initialize")) {
        crash();
    }
    if (is_manner("hangs in C_Initialize")) {
        hang();
    }
    if (is_manner("fails in C_Initialize")) {
        return GENERAL_ERROR;
    }
    if (is_manner("starts a thread that never rests")) {
        pthread_t thread;
        pthread_create(&thread, NULL, run_forever, NULL);
    }
    return OK;
}

static ulong_t get_slot_list(byte_t present, ulong_t *slots, ulong_t *count) {
    (void)present;
    if (is_manner("has 2^32 slots")) {
        *count = 1UL << 32;
        return OK;
    }
    if (is_manner("has more slots than it said") && slots != NULL) {
        *count = 1UL << 20;
        return OK;
    }
    if (slots != NULL && *count >= 1) {
        slots[0] = 7;
    }
    *count = 1;
    return OK;
}

static void fill(byte_t *text, size_t length, const char *value) {
    size_t given = strlen(value);
    memset(text, ' ', length);
    memcpy(text, value, given < length ? given : length);
}

struct slot_info {
    byte_t description[64];
    byte_t manufacturer[32];
    ulong_t flags;
    byte_t versions[4];
};

struct token_info {
    byte_t label[32];
    byte_t manufacturer[32];
    byte_t model[16];
    byte_t serial[16];
    ulong_t flags;
    ulong_t numbers[10];
    byte_t versions[4];
    byte_t time[16];
};

static ulong_t get_slot_info(ulong_t slot, struct slot_info *info) {
    (void)slot;
    memset(info, 0, sizeof(*info));
    fill(info->description, sizeof(info->description), "slot");
    fill(info->manufacturer, sizeof(info->manufacturer), "nobody");
    info->flags = 5;
    return OK;
}

static ulong_t get_token_info(ulong_t slot, struct token_info *info) {
    (void)slot;
    memset(info, 0, sizeof(*info));
    fill(info->label, sizeof(info->label), "Hostile");
    fill(info->manufacturer, sizeof(info->manufacturer), "nobody");
    fill(info->model, sizeof(info->model), "model");
    fill(info->serial, sizeof(info->serial), "1");
    if (is_manner("has names that are no text")) {
        memset(info->label, 0xff, sizeof(info->label));
        memset(info->manufacturer, 0x1b, sizeof(info->manufacturer));
        memset(info->model, 0, sizeof(info->model));
        fill(info->serial, sizeof(info->serial), "\xe2\x80\xae\n\r1");
    }
    /* Token initialized, PIN set. No login. */
    info->flags = 0x408;
    if (is_manner("has a locked PIN")) {
        /* Login required, PIN locked. */
        info->flags |= 0x4 | 0x40000;
    }
    return OK;
}

static ulong_t get_mechanism_list(ulong_t slot, ulong_t *list, ulong_t *count) {
    (void)slot;
    if (is_manner("has 2^60 mechanisms")) {
        *count = 1UL << 60;
        return OK;
    }
    if (list != NULL && *count >= 1) {
        list[0] = 0x1041;
    }
    *count = 1;
    return OK;
}

static ulong_t open_session(ulong_t slot, ulong_t flags, void *application, void *notify, ulong_t *session) {
    (void)slot, (void)flags, (void)application, (void)notify;
    *session = 1;
    return OK;
}

static ulong_t close_session(ulong_t session) {
    (void)session;
    return OK;
}

static ulong_t wanted_class;
static int found;

struct attribute {
    ulong_t type;
    void *value;
    ulong_t length;
};

static ulong_t find_objects_init(ulong_t session, const struct attribute *template, ulong_t count) {
    (void)session;
    wanted_class = 0;
    for (ulong_t index = 0; index < count; index++) {
        if (template[index].type == 0) {
            wanted_class = *(const ulong_t *)template[index].value;
        }
    }
    found = 0;
    return OK;
}

static ulong_t find_objects(ulong_t session, ulong_t *objects, ulong_t most, ulong_t *count) {
    (void)session;
    if (is_manner("finds objects without an end")) {
        for (ulong_t index = 0; index < most; index++) {
            objects[index] = 3;
        }
        *count = most;
        return OK;
    }
    if (is_manner("finds more objects than fit")) {
        *count = most * 1000;
        return OK;
    }
    /* A private key. */
    if (wanted_class != 3 || found) {
        *count = 0;
        return OK;
    }
    found = 1;
    objects[0] = 3;
    *count = 1;
    return OK;
}

static ulong_t find_objects_final(ulong_t session) {
    (void)session;
    return OK;
}

static ulong_t get_attribute_value(ulong_t session, ulong_t object, struct attribute *attributes, ulong_t count) {
    (void)session, (void)object;
    static const byte_t curve[] = {0x06, 0x08, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x03, 0x01, 0x07};
    static const ulong_t type_ec = 3;
    static const byte_t yes = 1;
    ulong_t outcome = OK;
    for (ulong_t index = 0; index < count; index++) {
        struct attribute *attribute = &attributes[index];
        const void *value = NULL;
        ulong_t length = 0;
        switch (attribute->type) {
        case 0x102: /* CKA_ID */
            value = "key";
            length = 3;
            break;
        case 0x003: /* CKA_LABEL */
            value = is_manner("has names that are no text") ? "\xff\xfe\x1b" : "key";
            length = 3;
            break;
        case 0x100: /* CKA_KEY_TYPE */
            value = &type_ec;
            length = sizeof(type_ec);
            break;
        case 0x180: /* CKA_EC_PARAMS */
            value = curve;
            length = sizeof(curve);
            break;
        case 0x108: /* CKA_SIGN */
        case 0x103: /* CKA_SENSITIVE */
        case 0x001: /* CKA_TOKEN */
            value = &yes;
            length = 1;
            break;
        }
        if (is_manner("has attributes of 2^60 bytes") && attribute->value == NULL) {
            attribute->length = 1UL << 60;
            continue;
        }
        if (is_manner("has attributes of no length")) {
            attribute->length = 0;
            continue;
        }
        if (is_manner("has attributes longer than it said") && attribute->value != NULL) {
            attribute->length = 1UL << 40;
            continue;
        }
        if (value == NULL || is_manner("has no attributes")) {
            attribute->length = (ulong_t)-1;
            outcome = TYPE_INVALID;
            continue;
        }
        if (attribute->value != NULL) {
            if (attribute->length < length) {
                attribute->length = (ulong_t)-1;
                outcome = TOO_SMALL;
                continue;
            }
            memcpy(attribute->value, value, length);
        }
        attribute->length = length;
    }
    return outcome;
}

static ulong_t sign_init(ulong_t session, const void *mechanism, ulong_t key) {
    (void)session, (void)mechanism, (void)key;
    if (is_manner("has a locked PIN")) {
        return NOT_LOGGED_IN;
    }
    return OK;
}

static ulong_t sign(ulong_t session, byte_t *data, ulong_t data_length, byte_t *signature, ulong_t *length) {
    (void)session, (void)data, (void)data_length;
    if (is_manner("hangs in C_Sign")) {
        hang();
    }
    if (is_manner("crashes in C_Sign")) {
        crash();
    }
    if (is_manner("ends the process in C_Sign")) {
        exit(0);
    }
    if (is_manner("takes all memory")) {
        for (;;) {
            void *memory = malloc(1 << 24);
            if (memory == NULL) {
                abort();
            }
            memset(memory, 1, 1 << 24);
        }
    }
    if (is_manner("makes signatures of 2^60 bytes")) {
        *length = 1UL << 60;
        return OK;
    }
    if (is_manner("makes signatures of unknown length")) {
        *length = (ulong_t)-1;
        return OK;
    }
    if (is_manner("makes signatures of no length")) {
        *length = 0;
        return OK;
    }
    if (is_manner("makes signatures longer than it said") && signature != NULL) {
        *length = 1UL << 40;
        return OK;
    }
    if (is_manner("returns an error that there is not")) {
        return 0x7fffffff12345678UL;
    }
    if (signature != NULL) {
        memset(signature, 1, 64);
        signature[0] = (byte_t)attempt();
    }
    *length = 64;
    return OK;
}

/* CK_FUNCTION_LIST: a version, and 68 functions. */
static struct {
    byte_t version[2];
    void *functions[68];
} functions = {.version = {2, 40}};

__attribute__((visibility("default"))) ulong_t C_GetFunctionList(void **list) {
    for (int index = 0; index < 68; index++) {
        functions.functions[index] = (void *)not_supported;
    }
    functions.functions[0] = (void *)initialize;
    functions.functions[4] = (void *)get_slot_list;
    functions.functions[5] = (void *)get_slot_info;
    functions.functions[6] = (void *)get_token_info;
    functions.functions[7] = (void *)get_mechanism_list;
    functions.functions[12] = (void *)open_session;
    functions.functions[13] = (void *)close_session;
    functions.functions[24] = (void *)get_attribute_value;
    functions.functions[26] = (void *)find_objects_init;
    functions.functions[27] = (void *)find_objects;
    functions.functions[28] = (void *)find_objects_final;
    functions.functions[42] = (void *)sign_init;
    functions.functions[43] = (void *)sign;
    *list = &functions;
    return is_manner("has no functions") ? GENERAL_ERROR : OK;
}
