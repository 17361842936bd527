/* Every kind in several scripts and shapes, beside what only looks like it; texts made to be slow; threads;
 * memory that is not there.
 *
 * No string here is a key of anybody. Those that look like one are joined from pieces, so that programs which
 * search sources for secrets find none. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "core/base/random.h"
#include "datastore/findings.h"
#include "tests/expect.h"

#define R10 "a1B2c3D4e5"
#define R20 R10 "f6G7h8J9k0"
#define R40 R20 R20
#define HEX32 "0a1b2c3d4e5f60718293a4b5c6d7e8f9"
#define BODY "\nMIIEvQIBADANBgkqhkiG9w0BAQEFAASCBKcwggSjAgEAAoIBAQC7\n"
/* NBSP, narrow NBSP, non-breaking hyphen, zero-width marks as address books write them */
#define NBSP "\xc2\xa0"
#define NARROW "\xe2\x80\xaf"
#define HYPHEN "\xe2\x80\x91"
#define LTR "\xe2\x80\xaa"
#define POP "\xe2\x80\xac"

enum {
    CARD = ATTUNE_FINDING_CARD,
    IBAN = ATTUNE_FINDING_IBAN,
    EMAIL = ATTUNE_FINDING_EMAIL,
    PHONE = ATTUNE_FINDING_PHONE,
    TOKEN = ATTUNE_FINDING_TOKEN,
    KEY = ATTUNE_FINDING_PRIVATE_KEY
};

struct sample {
    const char *text;
    uint32_t count; /* of the table's kind; 0 of every other */
};

/* ---- what is found ---- */

static const struct sample cards[] = {
    {"4111111111111111", 1},
    {"4111 1111 1111 1111", 1},
    {"my card is 4111-1111-1111-1111, exp 12/27, cvv 123", 1},
    {"5555 5555 5555 4444 0927 123", 1},
    {"5555 5555 5555 4444 123", 1},
    {"378282246310005 or 3782 822463 10005", 2},
    {"30569309025904", 1},
    {"2223003122003222", 1},
    {"3530111333300000", 1},
    {"6011111111111117,4222222222222,5105105105105100", 3},
    {"6205500000000000004", 1},
    {"4111" NBSP "1111" NARROW "1111" NBSP "1111", 1},
    {"4111" HYPHEN "1111" HYPHEN "1111" HYPHEN "1111", 1},
    {"\xef\xbc\x94\xef\xbc\x91\xef\xbc\x91\xef\xbc\x91 1111 1111 1111", 1}, /* full width */
    {"رقم البطاقة ٤١١١١١١١١١١١١١١١", 1},
    {"卡号4111111111111111。", 1},
    {"password: 4111 1111 1111 1111", 1},
};

static const struct sample ibans[] = {
    {"DE89370400440532013000", 1},
    {"DE89 3704 0044 0532 0130 00 bitte", 1},
    {"de89 3704 0044 0532 0130 00", 1},
    {"DE89-3704-0044-0532-0130-00", 1},
    {"GB29NWBK60161331926819, FR14 2004 1010 0505 0001 3M02 606 et NL91ABNA0417164300.", 3},
    {"NO9386011117947", 1},
    {"MT84MALT011000012345MTLCAST001S", 1},
    {"IBAN:CH93" NBSP "0076" NBSP "2011" NBSP "6238" NBSP "5295" NBSP "7", 1},
    {"XX681234567890ABCDE", 1}, /* a country that the registry does not have yet */
};

static const struct sample emails[] = {
    {"jane.doe@example.com", 1},
    {"Write to <jane+lists@mail.example.co.uk>.", 1},
    {"o'brien_99@sub.sub.example.org, A-B%c@EXAMPLE.COM", 2},
    {"mailto:jane@example.com?subject=x", 1},
    {"jörg@example.de, почта@пример.рф, δοκιμή@παράδειγμα.ελ", 3},
    {"邮箱是zhang@example.com，或者li@example.cn。", 2},
    {"मेल@उदाहरण.भारत", 1},
    {"user@xn--bcher-kva.example, user@host.xn--p1ai", 2},
    {"jane＠example．com", 1},
    {"a@b.co;c@d.io", 2},
    {"@jane@social.example", 1},
};

static const struct sample phones[] = {
    {"+4915112345678", 1},
    {"+1 555 123 4567 or +1 (555) 123-4567 or +1.555.123.4567", 3},
    {"(555) 123-4567, 555-123-4567, 555.123.4567, 555 123 4567", 4},
    {"1-800-555-0199; 1 (800) 555-0199", 2},
    {"+49 (0)151 12345678, (+49) 151 12345678, 0151/12345678, 0151 12345678 0170 1234567", 5},
    {"030 / 123 456 78; (030) 123-456; 089/123-456", 3},
    {"0049 151 12345678", 1},
    {"+44 20 7946 0018, 020 7946 0018, (020) 7946 0018, 01632 960 001", 4},
    {"06 12 34 56 78, 06.12.34.56.78, +33 6 12 34 56 78", 3},
    {"06" NARROW "12" NARROW "34" NARROW "56" NARROW "78", 1},
    {"8 (912) 345-67-89, +7 912 345-67-89, 8-912-345-67-89", 3},
    {"090-1234-5678 か 03-1234-5678", 2},
    {"010-1234-5678", 1},
    {"138 1234 5678，+86 138 1234 5678", 2},
    {"(11) 91234-5678, 11 91234-5678, +55 11 91234-5678", 3},
    {"0412 345 678, (02) 9876 5432", 2},
    {"+91 98765 43210, +34 612 345 678, 612 34 56 78, +353 1 234 5678", 4},
    {"0532 123 45 67 ve 052-123-4567", 2},
    {"555" HYPHEN "123" HYPHEN "4567, 555\xe2\x80\x93" "123\xe2\x80\x93" "4567", 2},
    {LTR "+1 (555) 123" HYPHEN "4567" POP, 1},
    {"0151 12\xe2\x80\x8b" "34\xc2\xad" " 5678, +49\xe2\x81\xa0" "15112345678", 2},
    {"٠١٢٣ ٤٥٦ ٧٨٩٠", 1},
    {"०९८७६-५४३२१०", 1},
    {"phone: 07911123456. Tel. 015112345678, mobile number is 9876543210", 3},
    {"电话13812345678，手机号码：13912345678", 2},
    {"Mi teléfono es 612345678; téléphone : 0612345678; celular 1123456789", 3},
    {"тел. 84951234567", 1},
    {"WhatsApp 612 345 678", 1},
    {"tel:+15551234567 fax +1-555-123-4568", 2},
};

static const struct sample tokens[] = {
    {"sk-" R20 R20, 1},
    {"OPENAI_API_KEY=sk-" "proj-" R40 "_" R20, 1},
    {"sk-" "ant-api03-" R40 "-" R40, 1},
    {"key sk-" "svcacct-" R40 ", sk-" "or-v1-" HEX32 HEX32, 2},
    {"gh" "p_" R20 R10 "abcdef gh" "o_" R40 " gh" "u_" R40 " gh" "s_" R40 " gh" "r_" R40, 5},
    {"github" "_pat_" R20 "AB_" R40 R10, 1},
    {"gl" "pat-" R20 " gl" "dt-" R20, 2},
    {"AK" "IAABCDEFGH234567IJ and AS" "IAABCDEFGH234567IJ", 2},
    {"aws_access_key_id = AK" "IAABCDEFGH234567IJ\naws_secret_access_key = " R20 "/" R10 "+LmNoPqRs", 2},
    {"\"aws_secret\": \"" R40 "\"", 1},
    {"AI" "za" R20 R10 "_abcD", 1},
    {"GOC" "SPX-" R20 "_-" R10 " ya" "29." R40, 2},
    {"xo" "xb-123456789012-" R20 " xo" "xp-1-2-" R20 " xap" "p-1-A" R20, 3},
    {"https://hooks." "slack.com/services/T01AB2CD3/B04EF5GH6/" R20, 1},
    {"https://discord.com/api/web" "hooks/123456789012345678/" R40 R20 R10, 1},
    {"sk" "_live_" R20 " rk" "_live_" R20 " sk" "_test_" R20 " whs" "ec_" R40, 4},
    {"np" "m_" R20 R10 "abcdef", 1},
    {"py" "pi-AgE" R40, 1},
    {"h" "f_" R20 R10 "abcd", 1},
    {"bot123456789:" "AA" R20 R10 "-_x", 1},
    {"MTA" R20 "Z." "Xy1_zA." R20 R10, 1}, /* Discord */
    {"S" "G." R20 "Ab." R40 "xyz", 1},
    {"S" "K" HEX32, 1},
    {"ey" "JhbGciOiJIUzI1NiJ9.ey" "JzdWIiOiIxMjM0NTY3ODkwIn0." R40 "_-", 1},
    {"Authorization: Bearer " R20 "\nauthorization: basic dXNlcjpwYXNzd29yZDE=", 2},
    {"curl -H 'Authorization: Bearer ey" "JhbGciOiJIUzI1NiJ9.ey" "JzdWIiOiIxMjM0In0." R40 "'", 1},
    {"postgres://joe:s3cret@db.example.com/x", 1},
    {"https://user:pass@example.com and redis://:pw@10.0.0.1:6379", 2},
    {"password: hunter22", 1},
    {"My password is Xy7$kk21. **Password:** `Blue42Sky`", 2},
    {"db_password=\"s3cretPa55\" PWD='qwe12rty' passphrase => Abc123xyz", 3},
    {"{\"password\": \"tr0ub4dor\"}, \"client_secret\": \"" R20 "\"", 2},
    {"api_key=" R20 " api-key: " R20 " X-API-Key: " R20 " apikey = " R20, 4},
    {"access_token: " R40 "; secret=" R20 "; auth key -> " R20, 3},
    {"mein Passwort lautet Sommer2024! Kennwort: abc123def", 2},
    {"la contraseña es gato1234, a senha é gato1234, mot de passe : chat1234", 3},
    {"пароль: qwe12345, Пароль - это важно", 1},
    {"密码：abc12345！密碼是abc12345，パスワードはabc12345です。비밀번호: abc12345", 4},
    {"كلمة المرور: abc12345 סיסמה: abc12345 รหัสผ่าน: abc12345 hasło: kot12345 şifre: kedi1234", 5},
};

static const struct sample keys[] = {
    {"-----BEGIN " "PRIV" "ATE KEY-----" BODY, 1},
    {"-----BEGIN " "RSA PRIV" "ATE KEY-----\nProc-Type: 4,ENCRYPTED\nDEK-Info: AES-128-CBC,0A1B2C\n" BODY, 1},
    {"-----BEGIN " "OPENSSH PRIV" "ATE KEY-----\r\nb3BlbnNzaC1rZXktdjEAAAAABG5vbmU\r\n", 1},
    {"-----BEGIN " "EC PRIV" "ATE KEY-----" BODY "-----BEGIN " "ENCRYPTED PRIV" "ATE KEY-----" BODY, 2},
    {"-----BEGIN " "PGP PRIV" "ATE KEY BLOCK-----\nVersion: GnuPG v2\n\nlQOYBF0001ABCACqwertyuiop\n", 1},
    {"\"private_key\": \"-----BEGIN " "PRIV" "ATE KEY-----\\nMIIEvQIBADANBgkqhkiG9w0BAQ\\n\"", 1},
    {"> -----BEGIN " "PRIV" "ATE KEY-----\n> MIIEvQIBADANBgkqhkiG9w0BAQ\n", 1},
    {"---- BEGIN " "SSH2 ENCRYPTED PRIV" "ATE KEY ----\nComment: \"x\"\nP2/56wAAAi4AAAA3aWYtbW9kbntzaWdu\n", 1},
    {"PuTTY-" "User-Key-File-3: ssh-ed25519\nEncryption: none\nComment: x\n", 1},
    {"AGE-SECRET-" "KEY-1QQPQYZSM5T3ZJ4JQQPQYZSM5T3ZJ4JQQPQYZSM5T3ZJ4JQQPQYZSM5T3ZJ", 1},
    {"secret: AGE-SECRET-" "KEY-1QQPQYZSM5T3ZJ4JQQPQYZSM5T3ZJ4JQQPQYZSM5T3ZJ4JQQPQYZSM5T3ZJ", 1},
    {"untrusted comment: minisign encrypted sec" "ret key\nRWRT" R40 R40 R20, 1},
    /* the key 1, as everybody knows it, compressed and not; and BIP 32, test vector 1 */
    {"KwDiBf89QgGbjEhKnhXJ" "uH7LrciVrZi3qYjgd9M7rFU73sVHnoWn", 1},
    {"5HpHagT65TZzG1PH3CSu" "63k8DbpvD8s5ip4nEB3kEsreAnchuDf", 1},
    {"private_key=KwDiBf89QgGbjEhKnhXJ" "uH7LrciVrZi3qYjgd9M7rFU73sVHnoWn", 1},
    {"xprv" "9s21ZrQH143K3QTDL4LXw2F7HEK3wJUD2nW2nRk4stbPy6cq3jPPqjiChkVvvNKmPGJxWUtg6LnF5kejMRNNU3TGtRBeJgk33"
     "yuGBxrMPHi", 1},
};

/* ---- what is not ---- */

static const char *const near_misses[] = {
    "",
    "An ordinary sentence: with a colon, 3 apples, and (perhaps) a dash - or two.",
    /* cards: Luhn, issuer, length, groups, a longer run, a fraction */
    "4111 1111 1111 1112", "5500-0000-0000-0005", "1111 1111 1111 1117", "7111 1111 1111 1111", "411111111111",
    "41111111111111111234", "4111 1111 1111 1111 1111 1111", "0.4111111111111111", "4111  1111  1111  1111",
    "x4111111111111111", "4111111111111111x", "41 11 11 11 11 11 11 11", "4111-1111 1111-1111",
    "EAN 4006381333931, order 112-1234567-1234567, parcel 1Z999AA10123456784",
    /* IBANs: the length alone, checksum, inside a word */
    "DE5137040044053201300", "DE89 3704 0044 0532 0130 01", "DE89 3704 0044 0532 0130 0", "GB29 NWBK 6016 1331 9268 18",
    "DE8937040044053201300012", "XDE89370400440532013000", "DE89 370400440532013 000", "AB12 CD34 EF56 GH78",
    "XX68 1234 5678 90AB CDE",
    /* e-mail */
    "@john @media (max-width: 600px) @decorator.method", "foo@bar user@localhost a@b 3@4 jane at example dot com",
    "icon@2x.png logo@1.5x.png", "git@github.com:user/repo.git", "react@18.2.0 lodash@latest", "jane@example.c",
    "jane @example.com", "jane@ example.com", "jane@.com", "jane@example..", "https://video.example/@jane.doe",
    /* dates, times, versions, addresses, amounts, lists, identifiers */
    "2024-01-15 10:30, 15/01/2024 14:00, 15.01.2024 14.00, 01/15/2024, 05-12-23 1045, 01.02.2024 1530",
    "09.30 10.45 11.15 12.00 13.30", "2024-01-15T10:30:00.123456789+02:00 20240115T103000Z",
    "1700000000 1700000000123 1700000000123456", "v1.2.3 10.15.7.1234 1.2.3.4-rc.5",
    "192.168.100.200 10.0.0.255:8080 2001:0db8:85a3:0000:0000:8a2e:0370:7334",
    "1 234 567 890, 1.234.567.890,50 €, 12,345,678.90, 1'234'567'890, +20 000 000, +5 %, 300 000 000",
    "ISBN 978-0-13-468599-1, 0-306-40615-2, 9780134685991, 978 0 306 40615 7, 99921-58-10-7, ISSN 0317-8471",
    "3.14159265358979323846 0.123456789 6.02214076e23 299792458 1234567890123456789",
    "1990-1995 2000-2005, 1939\xe2\x80\x93" "1945 (1990) 2000-2010, Nature (2019) 571 123-456",
    "550e8400-e29b-41d4-a716-446655440000 12345678-1234-1234-1234-123456789012",
    "d41d8cd98f00b204e9800998ecf8427e sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
    "52.5200\xc2\xb0 N, 13.4050\xc2\xb0 E; -33.8688, 151.2093; 40.7128 -74.0060",
    "01 02 03 04 05 06; 01 02 03 04 05; 1 2 3 4 5 6 7 8 9 10; 100 200 300 400 500; 07 14 21 28 35 42",
    "1-2-3; 100-200-300; 2+2=4; 5+4915112345678; 1920x1080 3840x2160; 555-0100 867-5309",
    "0123456789 015112345678 5551234567 13812345678", "0930-1045, 08:30-17:00, 007, 0800, 00 01 02",
    "+1 555 0100, +1-2-3, +12345678901234567890, +0 123 456 789, x+4915112345678", "555-123-45678 555-123-4567-89",
    "iPhone 15 128 256 512; telephone in 1876; phone 12; call 911; tel. 110; mobile 5G 2600",
    "phone 192.168.100.200, phone 2024-01-15 10 20", "f(12) 3456789 (2024) 123-4567",
    /* tokens */
    "sk-learn sk-estimator-doc-link-class sk-" R10, "gh" "p_short gh" "x_" R40 " github" "_pat_x",
    "sk-" "xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx gh" "p_xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx",
    "AK" "IA123 AK" "IAABCDEFGH234567IJK SAK" "IAABCDEFGH234567IJ", "AI" "zaShort glad glpat- glass-" R20,
    "xo" "xo-hugs xo" "xb-1", "h" "f_transfer np" "m_config_registry sk" "_test_ py" "pi-package S" "G.1.2 S" "K0a1b",
    "eyJ.eyJ.x eyJhbGciOiJIUzI1NiJ9 eyJhbGciOiJIUzI1NiJ9.no", "10:30:00 12345678:short 1234567:" R20 R10 "ABCDE",
    "MyVeryLongClassNameForThings.method.anotherVeryLongNameForThingsThatAre",
    "Authorization: Bearer YOUR_TOKEN_GOES_HERE_123", "Authorization: Bearer <token>", "the bearer of good news",
    "token: MyVeryLongClassName.methodOfThings",
    "https://example.com/path:x http://host:8080/a https://t.co/@jane ssh://git@host/x", "redis://:${PASS}@h",
    "https://hooks." "slack.com/docs", "password: at least 8 characters, password: required, Password?",
    "password = getPassword2(user); pwd=$(pwd); PASSWORD=${DB_PASSWORD1}; password: <password1>",
    "password: your_password_1, password: https://example.com/reset1, password=/etc/passwd2, password: ****1a",
    "password: 123456, password: aaaa1111, The password is incorrect, Passwort ist zu kurz",
    "token: string; max_tokens=2048; secret: true; api_key=os.environ[\"KEY1\"]; key: " R20 "; keyboard: " R20,
    "api_key=YOUR_API_KEY_GOES_HERE1; secret=abc123; access_token=none",
    /* private keys */
    "-----BEGIN CERTIFICATE-----" BODY, "-----BEGIN PUBLIC KEY-----" BODY,
    "a file that starts with -----BEGIN " "PRIV" "ATE KEY----- is secret", "-----BEGIN PRIV" "ATE KEY",
    "The first line is PuTTY-" "User-Key-File-3: and so on", "AGE-SECRET-" "KEY-1QQPQYZSM5", "age1" HEX32,
    "KwDiBf89QgGbjEhKnhXJ" "uH7LrciVrZi3qYjgd9M7rFU73sVHnoWm", "5HpHagT65TZzG1PH3CSu" "63k8DbpvD8s5ip4nEB3kEsreAnchuDg",
    "L" "11111111111111111111111111111111111111111111111111 1A1zP1eP5QGefi2DMPTfTL5SLmv7DivfNa",
};

/* ---- helpers ---- */

/* Of exactly n bytes, so that a sanitizer sees a read behind them. */
static int scan_exactly(const char *text, size_t n, struct findings *found, attune_error *err) {
    char *exact = malloc(n ? n : 1);
    assert_non_null(exact);
    memcpy(exact, text, n);
    int code = findings_scan(exact, n, found, err);
    free(exact);
    return code;
}

static int counts_are(const char *text, const uint32_t wanted[ATTUNE_FINDINGS]) {
    struct findings found = {{0}};
    OK(scan_exactly(text, strlen(text), &found, &err));
    uint32_t total = 0;
    int same = 1;
    for (int kind = 0; kind < ATTUNE_FINDINGS; kind++) {
        total += wanted[kind];
        if (found.count[kind] == wanted[kind]) continue;
        same = 0;
        print_error("%u of kind %d, not %u, in: %s\n", found.count[kind], kind, wanted[kind], text);
    }
    return same && findings_any(&found) == (total > 0);
}

static int samples_are(const struct sample *samples, size_t n, int kind) {
    int same = 1;
    for (size_t i = 0; i < n; i++) {
        uint32_t wanted[ATTUNE_FINDINGS] = {0};
        char inside[1024];
        wanted[kind] = samples[i].count;
        same &= counts_are(samples[i].text, wanted);
        /* what stands around does not matter */
        snprintf(inside, sizeof inside, "Well,\n\"%s\"\n(so it is)", samples[i].text);
        same &= counts_are(inside, wanted);
    }
    return same;
}
#define SAMPLES_ARE(samples, kind) samples_are(samples, sizeof samples / sizeof *samples, kind)

static int near_misses_are_none(void) {
    static const uint32_t none[ATTUNE_FINDINGS];
    int same = 1;
    for (size_t i = 0; i < sizeof near_misses / sizeof *near_misses; i++) same &= counts_are(near_misses[i], none);
    return same;
}

static void test_cards(void **state) { (void)state, assert_true(SAMPLES_ARE(cards, CARD)); }
static void test_ibans(void **state) { (void)state, assert_true(SAMPLES_ARE(ibans, IBAN)); }
static void test_emails(void **state) { (void)state, assert_true(SAMPLES_ARE(emails, EMAIL)); }
static void test_phones(void **state) { (void)state, assert_true(SAMPLES_ARE(phones, PHONE)); }
static void test_tokens(void **state) { (void)state, assert_true(SAMPLES_ARE(tokens, TOKEN)); }
static void test_keys(void **state) { (void)state, assert_true(SAMPLES_ARE(keys, KEY)); }
static void test_near_misses(void **state) { (void)state, assert_true(near_misses_are_none()); }

static const char mixture[] = "Jane <jane@example.com>, +49 151 12345678, card 4111 1111 1111 1111, DE89 3704 0044 "
                              "0532 0130 00; password: hunter22 https://joe:pw1@example.com/x jörg@example.de";
static const uint32_t mixture_counts[ATTUNE_FINDINGS] = {
    [CARD] = 1, [IBAN] = 1, [EMAIL] = 2, [PHONE] = 1, [TOKEN] = 2};

/* What is found is one thing: a card's digits are no phone, a password's '@' makes no address. */
static void test_mixture(void **state) {
    (void)state;
    assert_true(counts_are(mixture, mixture_counts));
    static const uint32_t three[ATTUNE_FINDINGS] = {[PHONE] = 1, [TOKEN] = 2};
    assert_true(counts_are("tel +1 555 123 4567 password: joe99@host.net token=AK" "IAABCDEFGH234567IJ", three));
}

static void test_counts_add_up(void **state) {
    (void)state;
    struct findings found = {{0}};
    assert_false(findings_any(&found));
    for (int i = 0; i < 3; i++) OK(findings_scan(mixture, strlen(mixture), &found, &err));
    for (int kind = 0; kind < ATTUNE_FINDINGS; kind++) assert_int_equal(found.count[kind], 3 * mixture_counts[kind]);
    found.count[EMAIL] = UINT32_MAX - 1; /* two more would wrap */
    OK(findings_scan(mixture, strlen(mixture), &found, &err));
    assert_int_equal(found.count[EMAIL], UINT32_MAX);
    struct findings app = {{0}};
    app.count[ATTUNE_FINDING_APP] = 1;
    assert_true(findings_any(&app));
}

static void test_names(void **state) {
    (void)state;
    for (int i = 0; i < ATTUNE_FINDINGS; i++) {
        assert_non_null(attune_finding_name(i));
        for (int j = 0; j < i; j++) assert_string_not_equal(attune_finding_name(i), attune_finding_name(j));
    }
    assert_string_equal(attune_finding_name(CARD), "card number");
    assert_string_equal(attune_finding_name(EMAIL), "e-mail address");
    assert_null(attune_finding_name(-1));
    assert_null(attune_finding_name(ATTUNE_FINDINGS));
}

static void test_not_utf8(void **state) {
    (void)state;
    static const char *const bad[] = {"a@b.co \xff", "\xc3", "\xc3(", "\xed\xa0\x80", "\xf4\x90\x80\x80", "\xc0\xaf"};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        struct findings found = {{7, 7, 7}};
        attune_error err = {0};
        assert_int_equal(scan_exactly(bad[i], strlen(bad[i]), &found, &err), ATTUNE_ERROR_ARGUMENT);
        assert_int_equal(err.code, ATTUNE_ERROR_ARGUMENT);
        assert_int_equal(found.count[EMAIL], 7);
    }
}

/* Every beginning of a text, and the text with bytes changed: an answer or a clean refusal. */
static void test_damaged(void **state) {
    (void)state;
    size_t n = strlen(mixture);
    for (size_t to = 0; to <= n; to++) {
        struct findings found = {{0}};
        int code = scan_exactly(mixture, to, &found, NULL);
        assert_true(code == ATTUNE_OK || code == ATTUNE_ERROR_ARGUMENT);
    }
    for (uint64_t round = 0; round < 2000; round++) {
        char text[sizeof mixture];
        struct findings found = {{0}};
        memcpy(text, mixture, sizeof mixture);
        for (uint64_t i = 0; i < 4; i++) {
            uint64_t random = random_u64(round, i);
            text[random % n] = (char)(i % 2 ? random >> 32 : random >> 32 & 0x7f);
        }
        int code = scan_exactly(text, n, &found, NULL);
        assert_true(code == ATTUNE_OK || code == ATTUNE_ERROR_ARGUMENT);
    }
    struct findings found = {{0}};
    OK(findings_scan("a\0jane@example.com\0", 19, &found, &err));
    assert_int_equal(found.count[EMAIL], 1);
}

/* ---- texts made to be slow ---- */

/* The pieces, each over and over until there are `size` bytes. */
static void scan_hostile(size_t size) {
    static const char *const pieces[] = {
        "1", "a@", "+1-", "-----BEGIN ", ".", "1 ", "1111 ", "eyJ", "eyJ-", "@a.", "://", "a://a:", "password=", "0 ",
        "(12)", "\xc3\xa9", "+", "bearer a1B2", "密码", ("-----BEGIN PRIV" "ATE KEY-----\n"), "AB12 ", "key=", "tel 1 ",
        "AB12CD34EF56", "\xe2\x80\x8b", "sk-", "http://a:b", "a.a@", "tel: 12 12 12 12 1x ", "api key ", "Ma.", "5Hp",
        "pwd:pwd=a1b2c3x", "012-", "0:"};
    char *text = malloc(size);
    assert_non_null(text);
    for (size_t i = 0; i < sizeof pieces / sizeof *pieces; i++) {
        size_t each = strlen(pieces[i]), n = size / each * each;
        for (size_t at = 0; at < n; at += each) memcpy(text + at, pieces[i], each);
        struct findings found = {{0}};
        OK(findings_scan(text, n, &found, &err));
    }
    free(text);
}

static void test_hostile(void **state) {
    (void)state;
    enum { SIZE = 4 << 20 };
    scan_hostile(SIZE);
    /* what lies behind four megabytes of it is found all the same */
    size_t n = SIZE + sizeof " jane@example.com";
    char *long_text = malloc(n);
    assert_non_null(long_text);
    memset(long_text, '1', SIZE);
    memcpy(long_text + SIZE, " jane@example.com", sizeof " jane@example.com");
    struct findings found = {{0}};
    OK(findings_scan(long_text, n - 1, &found, &err));
    assert_int_equal(found.count[EMAIL], 1);
    assert_int_equal(found.count[CARD] + found.count[PHONE] + found.count[TOKEN], 0);
    free(long_text);
}

/* ---- threads ---- */

struct worker {
    pthread_t thread;
    pthread_barrier_t *start;
    int wrong;
};

static void *work(void *argument) {
    struct worker *worker = argument;
    pthread_barrier_wait(worker->start);
    for (int round = 0; round < 50; round++) {
        struct findings found = {{0}};
        if (findings_scan(mixture, strlen(mixture), &found, NULL) != ATTUNE_OK) worker->wrong++;
        if (memcmp(found.count, mixture_counts, sizeof found.count) != 0) worker->wrong++;
    }
    return NULL;
}

/* The first scans of the process, at the same moment. */
static void test_threads(void **state) {
    (void)state;
    struct worker workers[4];
    pthread_barrier_t start;
    memset(workers, 0, sizeof workers);
    assert_int_equal(pthread_barrier_init(&start, NULL, 4), 0);
    for (int i = 0; i < 4; i++) {
        workers[i].start = &start;
        assert_int_equal(pthread_create(&workers[i].thread, NULL, work, &workers[i]), 0);
    }
    for (int i = 0; i < 4; i++) {
        assert_int_equal(pthread_join(workers[i].thread, NULL), 0);
        assert_int_equal(workers[i].wrong, 0);
    }
    pthread_barrier_destroy(&start);
}

/* ---- memory that is not there ---- */

static const char folded[] = "jane@example.com" NBSP "+49" NBSP "151" NBSP "12345678";

/* In a child, where nothing is compiled yet: the N-th allocation fails (0: none), and then it does not. Returns
 * the code of the first scan, negated, or 100 when something else is wrong. It ends by exit: a sanitizer
 * then looks for leaks. */
static int scan_without_memory(int nth, const char *list) {
    fflush(NULL);
    pid_t child = fork();
    assert_true(child >= 0);
    if (child == 0) {
        char fault[64];
        struct findings found = {{0}};
        attune_error err = {0};
        snprintf(fault, sizeof fault, "findings.allocate:%d:fail", nth);
        if (nth) setenv("ATTUNE_FAULT", fault, 1);
        if (list) setenv("ATTUNE_FAULT_LIST", list, 1);
        int code = findings_scan(folded, strlen(folded), &found, &err);
        unsetenv("ATTUNE_FAULT");
        unsetenv("ATTUNE_FAULT_LIST");
        if (code != ATTUNE_OK && (findings_any(&found) || err.code != code || !err.message[0])) exit(100);
        if (code == ATTUNE_OK && (found.count[EMAIL] != 1 || found.count[PHONE] != 1)) exit(100);
        memset(&found, 0, sizeof found);
        if (findings_scan(folded, strlen(folded), &found, NULL) != ATTUNE_OK) exit(100);
        exit(found.count[EMAIL] == 1 && found.count[PHONE] == 1 ? -code : 100);
    }
    int status;
    assert_int_equal(waitpid(child, &status, 0), child);
    assert_true(WIFEXITED(status));
    return WEXITSTATUS(status);
}

static void test_no_memory(void **state) {
    (void)state;
    char path[] = "/tmp/attune_findings_XXXXXX";
    int fd = mkstemp(path), allocations = 0, refused = 0;
    assert_true(fd >= 0);
    assert_int_equal(scan_without_memory(0, path), 0);
    FILE *list = fdopen(fd, "r");
    assert_non_null(list);
    for (char line[160]; fgets(line, sizeof line, list);) allocations += !strcmp(line, "findings.allocate\n");
    fclose(list);
    unlink(path);
    assert_true(allocations > 10);
    for (int nth = 1; nth <= allocations; nth += nth < 10 || nth > allocations - 10 ? 1 : 3) {
        int code = scan_without_memory(nth, NULL);
        /* the JIT may do without */
        if (code != -ATTUNE_ERROR_MEMORY && code != ATTUNE_OK) fail_msg("allocation %d: %d", nth, code);
        refused += code == -ATTUNE_ERROR_MEMORY;
    }
    assert_true(refused > 10);
}

/* Where the system lets no program write code for itself, PCRE2's interpreter does the same. */
static void test_without_jit(void **state) {
    (void)state;
    fflush(NULL);
    pid_t child = fork();
    assert_true(child >= 0);
    if (child == 0) {
        setenv("ATTUNE_FAULT", "findings.jit:fail", 1);
        int same = SAMPLES_ARE(cards, CARD) & SAMPLES_ARE(ibans, IBAN) & SAMPLES_ARE(emails, EMAIL) &
                   SAMPLES_ARE(phones, PHONE) & SAMPLES_ARE(tokens, TOKEN) & SAMPLES_ARE(keys, KEY) &
                   near_misses_are_none() & counts_are(mixture, mixture_counts);
        scan_hostile(64 << 10);
        exit(same ? 0 : 1);
    }
    int status;
    assert_int_equal(waitpid(child, &status, 0), child);
    assert_true(WIFEXITED(status) && WEXITSTATUS(status) == 0);
}

int main(void) {
    /* the first three need a process that has compiled nothing */
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_no_memory), cmocka_unit_test(test_without_jit),   cmocka_unit_test(test_threads),
        cmocka_unit_test(test_cards),     cmocka_unit_test(test_ibans),         cmocka_unit_test(test_emails),
        cmocka_unit_test(test_phones),    cmocka_unit_test(test_tokens),        cmocka_unit_test(test_keys),
        cmocka_unit_test(test_mixture),   cmocka_unit_test(test_near_misses),   cmocka_unit_test(test_names),
        cmocka_unit_test(test_not_utf8),  cmocka_unit_test(test_counts_add_up), cmocka_unit_test(test_damaged),
        cmocka_unit_test(test_hostile),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
