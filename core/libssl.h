/* libssl as a table of functions found at run time: no headers, no link dependency, opaque pointers only.
 *
 * Every function here exists with this signature in OpenSSL 1.1.1 and all of 3.x. The numbers are part of the ABI. */
#ifndef HOLDFAST_LIBSSL_H
#define HOLDFAST_LIBSSL_H

#include <dlfcn.h>
#include <stddef.h>
#include <stdint.h>

#define HOLDFAST_LIBSSL(X)                                                                       \
    X(const void *, TLS_server_method, (void))                                                   \
    X(void *, SSL_CTX_new, (const void *))                                                       \
    X(void, SSL_CTX_free, (void *))                                                              \
    X(long, SSL_CTX_ctrl, (void *, int, long, void *))                                           \
    X(uint64_t, SSL_CTX_set_options, (void *, uint64_t))                                         \
    X(void, SSL_CTX_set_default_passwd_cb, (void *, int (*)(char *, int, int, void *)))          \
    X(int, SSL_CTX_use_certificate_chain_file, (void *, const char *))                           \
    X(int, SSL_CTX_use_PrivateKey_file, (void *, const char *, int))                             \
    X(int, SSL_CTX_check_private_key, (const void *))                                            \
    X(void *, SSL_new, (void *))                                                                 \
    X(void, SSL_free, (void *))                                                                  \
    X(void, SSL_set_accept_state, (void *))                                                      \
    X(void, SSL_set_bio, (void *, void *, void *))                                               \
    X(int, SSL_do_handshake, (void *))                                                           \
    X(int, SSL_session_reused, (const void *))                                                   \
    X(int, SSL_read, (void *, void *, int))                                                      \
    X(int, SSL_write, (void *, const void *, int))                                               \
    X(int, SSL_shutdown, (void *))                                                               \
    X(int, SSL_get_error, (const void *, int))                                                   \
    X(void *, BIO_meth_new, (int, const char *))                                                 \
    X(void, BIO_meth_free, (void *))                                                             \
    X(int, BIO_meth_set_read, (void *, int (*)(void *, char *, int)))                            \
    X(int, BIO_meth_set_write, (void *, int (*)(void *, const char *, int)))                     \
    X(int, BIO_meth_set_ctrl, (void *, long (*)(void *, int, long, void *)))                     \
    X(void *, BIO_new, (const void *))                                                           \
    X(int, BIO_free, (void *))                                                                   \
    X(void, BIO_set_data, (void *, void *))                                                      \
    X(void *, BIO_get_data, (void *))                                                            \
    X(void, BIO_set_init, (void *, int))                                                         \
    X(void, BIO_set_flags, (void *, int))                                                        \
    X(void, BIO_clear_flags, (void *, int))                                                      \
    X(void, ERR_clear_error, (void))                                                             \
    X(unsigned long, ERR_peek_error, (void))                                                     \
    X(const char *, ERR_reason_error_string, (unsigned long))                                    \
    X(const char *, OpenSSL_version, (int))

#define HOLDFAST_MEMBER(type, name, arguments) type(*name) arguments;
static struct {
    HOLDFAST_LIBSSL(HOLDFAST_MEMBER)
} libssl;
#undef HOLDFAST_MEMBER

enum {
    LIBSSL_CTRL_MODE = 33,
    LIBSSL_CTRL_SESS_CACHE_MODE = 44,
    LIBSSL_CTRL_TICKET_KEYS = 59,
    LIBSSL_CTRL_MIN_VERSION = 123,
    LIBSSL_TLS_1_2 = 0x0303,
    LIBSSL_MODES = 0x01 | 0x02 | 0x10,  /* partial write, moving write buffer, release buffers */
    LIBSSL_NO_COMPRESSION = 1 << 17,
    LIBSSL_SERVER_PREFERENCE = 1 << 22,
    LIBSSL_NO_RENEGOTIATION = 1 << 30,
    LIBSSL_FILETYPE_PEM = 1,
    LIBSSL_ERROR_WANT_READ = 2,
    LIBSSL_ERROR_ZERO_RETURN = 6,
    LIBSSL_BIO_RETRY_READ = 0x01 | 0x08,
    LIBSSL_BIO_RETRIES = 0x0f,
    LIBSSL_BIO_TYPE = 0x0400 | 127,     /* a source and sink; above what OpenSSL numbers itself */
    LIBSSL_BIO_CTRL_FLUSH = 11,
    LIBSSL_TICKET_KEY_BYTES = 80        /* name 16, HMAC 32, AES 32 */
};

/* Fill the table from a library, by path or soname. NULL: done. Otherwise what is missing: the library's own name
 * when it cannot be opened, else the function's. The library stays open for the life of the process. */
static inline const char *libssl_open(const char *path) {
    void *library = dlopen(path, RTLD_NOW | RTLD_LOCAL);
    if (library == NULL) return path;
#define HOLDFAST_FIND(type, name, arguments)                                     \
    if ((*(void **)(&libssl.name) = dlsym(library, #name)) == NULL) return #name;
    HOLDFAST_LIBSSL(HOLDFAST_FIND)
#undef HOLDFAST_FIND
    return NULL;
}

#endif
