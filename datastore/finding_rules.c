/* Expressions see text in which digits, spaces and hyphens of every script are ASCII (findings.c, fold).
 *
 * To keep a scan linear every expression either has a bounded reach, or ends in a possessive run that is part of
 * what was found, or starts only where such a run does. */
#include "datastore/finding_rules.h"

#include <string.h>

#include "core/base/hash.h"

/* ASCII only, whatever the locale. */
static int is_digit(char c) { return c >= '0' && c <= '9'; }
static int is_lower(char c) { return c >= 'a' && c <= 'z'; }
static int is_upper(char c) { return c >= 'A' && c <= 'Z'; }
static int is_word(char c) { return is_digit(c) || is_lower(c) || is_upper(c); }

/* ---- cards ---- */

/* ISO/IEC 7812-1, annex B. digits: values, not characters. */
static int luhn(const unsigned char *digits, size_t n) {
    unsigned sum = 0;
    for (size_t i = 0; i < n; i++) {
        unsigned d = digits[n - 1 - i];
        if (i % 2) d = d < 5 ? 2 * d : 2 * d - 9;
        sum += d;
    }
    return sum % 10 == 0;
}

/* Ranges that issuers use, with the lengths that they use there. */
static int issuer(const unsigned char *digits, size_t n) {
    unsigned two = digits[0] * 10u + digits[1], four = two * 100 + digits[2] * 10u + digits[3];
    switch (digits[0]) {
    case 2: return n >= 16 && ((four >= 2200 && four <= 2204) || (four >= 2221 && four <= 2720));
    case 3:
        if (two == 34 || two == 37) return n == 15;
        if (two == 35) return n >= 16;
        return (two == 30 || two == 36 || two == 38 || two == 39) && n >= 14;
    case 4: return n == 13 || n == 16 || n == 19;
    case 5: return two >= 51 && two <= 55 ? n == 16 : two != 59;
    case 6: return 1;
    case 9: return two == 97 && n == 16;
    default: return 0;
    }
}

/* What may follow a number on a card: the date 0927, the three digits on the back, or both. */
static int card_trailer(const char *text, size_t n) {
    if (n == 0) return 1;
    if (text[0] != ' ') return 0;
    if (n == 4) return 1;
    int month = n >= 5 ? (text[1] - '0') * 10 + text[2] - '0' : 0;
    return month >= 1 && month <= 12 && (n == 5 || (n == 9 && text[5] == ' '));
}

/* text: groups of digits. The number ends at the end of a group. */
static size_t accept_card(const char *text, size_t n) {
    unsigned char digits[19];
    size_t count = 0;
    for (size_t i = 0; i < n; i++) {
        if (!is_digit(text[i])) continue;
        if (count == sizeof digits) return 0;
        digits[count++] = (unsigned char)(text[i] - '0');
        int ends = i + 1 == n || !is_digit(text[i + 1]);
        if (!ends || count < 13 || !issuer(digits, count) || !luhn(digits, count)) continue;
        if (card_trailer(text + i + 1, n - i - 1)) return i + 1;
    }
    return 0;
}

/* Groups of one separator. Three digits at least in each: shorter ones make a list of numbers. */
#define CARD                                                                                                           \
    "(?<![0-9][.-]|\\+)(?<![0-9]{4} )[2-69][0-9]{3,18}+(?:([ -])[0-9]{3,19}+(?:\\1[0-9]{3,19}+){0,7}+)?+"              \
    "(?![A-Za-z0-9_])(?![.-][0-9])"

/* ---- IBAN ---- */

/* The country and its length: the registry of ISO 13616, kept by SWIFT. */
static const char iban_lengths[] =
    "AD24AE23AL28AT20AZ28BA20BE16BG22BH22BI27BR29BY28CH21CR22CY28CZ24DE22DJ27DK18DO28EE20EG29ES24FI18FK18FO18FR27"
    "GB22GE22GI23GL18GR27GT28HN28HR21HU28IE22IL23IQ23IS26IT27JO30KW30KZ20LB28LC32LI21LT20LU20LV21LY25MC27MD24ME22"
    "MK19MN20MR27MT31MU30NI28NL18NO15OM23PK24PL28PS29PT25QA29RO24RS22RU33SA24SC31SD18SE24SI19SK24SM27SO23ST25SV28"
    "TL23TN24TR26UA29VA22VG24XK20YE30";

static int upper(char c) { return is_lower(c) ? c - 'a' + 'A' : c; }

/* 0: the country is not known. */
static size_t iban_length(const char *text) {
    for (const char *at = iban_lengths; *at; at += 4)
        if (at[0] == upper(text[0]) && at[1] == upper(text[1])) return (size_t)((at[2] - '0') * 10 + at[3] - '0');
    return 0;
}

/* ISO 7064 MOD 97-10: the first four characters go to the end. Letters count 10 to 35. */
static int mod97(const char *iban, size_t n) {
    unsigned rest = 0;
    for (size_t i = 0; i < n; i++) {
        char c = iban[(i + 4) % n];
        rest = is_digit(c) ? rest * 10 + (unsigned)(c - '0') : rest * 100 + (unsigned)(upper(c) - 'A' + 10);
        rest %= 97;
    }
    return rest == 1;
}

/* text may reach into the words behind: the country's length says where it ends. An unknown country is
 * taken without spaces only. */
static size_t accept_iban(const char *text, size_t n) {
    char iban[34];
    size_t wanted = iban_length(text), count = 0, i = 0;
    int spaced = wanted > 0;
    for (; i < n && count < (wanted ? wanted : sizeof iban); i++) {
        if (is_word(text[i])) {
            iban[count++] = text[i];
        } else if (!spaced || count % 4) {
            break;
        }
    }
    if (wanted ? count != wanted : count < 15) return 0;
    if (i < n && is_word(text[i])) return 0;
    return mod97(iban, count) ? i : 0;
}

#define IBAN "[A-Z]{2}[0-9]{2}(?:[ -]?[A-Z0-9]){11,31}+"

/* ---- e-mail ---- */

/* From the '@' on: what stands before it need not be read. ASCII is not asked of either side. git@ is how
 * repositories are addressed; "@2x." is a picture for fine displays. */
#define EMAIL                                                                                                          \
    "(?<=[\\p{L}\\p{M}\\p{N}_+%~-])(?<!^git|[^A-Za-z0-9_.-]git)@(?![0-9](?:\\.[0-9])?x\\.)"                            \
    "(?:[\\p{L}\\p{N}][\\p{L}\\p{M}\\p{N}_-]{0,62}+\\.){1,8}"                                                          \
    "(?:xn--[a-z0-9-]{2,59}|[a-z]{2,24}+(?![a-z0-9_(])|[^\\x00-\\x7f\\P{L}][\\p{L}\\p{M}]{1,23})"

/* ---- telephones ---- */

static size_t count_digits(const char *text, size_t n) {
    size_t count = 0;
    for (size_t i = 0; i < n; i++) count += is_digit(text[i]) != 0;
    return count;
}

static size_t digits_9_to_15(const char *text, size_t n) {
    size_t count = count_digits(text, n);
    return count >= 9 && count <= 15 ? n : 0;
}

/* After '+' (E.164): North America and Russia have one length, the others differ too much. */
static size_t accept_international(const char *text, size_t n) {
    size_t count = count_digits(text, n), code = strcspn(text, "123456789");
    size_t least = text[code] == '1' || text[code] == '7' ? 11 : 8;
    return count >= least && count <= 16 ? n : 0;
}

/* Groups of digits. Those that start with the trunk digit 0 come in so many shapes that they are counted here;
 * what follows another number's 0 is that number. */
static size_t accept_national(const char *text, size_t n) {
    if (text[0] != '0') return n;
    size_t least = text[1] == '0' ? 10 : 9, most = text[1] == '0' ? 16 : 12;
    size_t count = 0, best = 0, group = 0, longest = 0, groups = 0, zeros = 0;
    for (size_t i = 0; i < n; i++) {
        if (!is_digit(text[i])) continue;
        if (group++ == 0) zeros += text[i] == '0';
        count++;
        if (i + 1 < n && is_digit(text[i + 1])) continue;
        groups++;
        if (group > longest) longest = group;
        group = 0;
        /* Pairs alone are times, dates or lots, but for the five of a French number. */
        int shaped = longest > 2 || (groups == 5 && count == 10 && zeros < 5 && i + 1 == n);
        int last = i + 1 == n || text[i + 2] == '0';
        if (shaped && last && count >= least && count <= most) best = i + 1;
    }
    return best;
}

#define PHONE_END "(?![A-Za-z0-9_])(?![.,:/+-][0-9])(?! ?[€$£¥%°])"
#define YEAR "(?:19|20)[0-9]{2}"
#define MARK "(?: ?\\(|\\)[ ./-]?| - |[ ./-])?" /* between two digits */

/* "+20 000 000" is an amount. */
#define INTERNATIONAL                                                                                                  \
    "(?<![A-Za-z0-9+/_])\\+(?![0-9]{1,3}([ .])[0-9]{3}\\1[0-9]{3}(?![ .-]?[0-9]))"                                     \
    "\\(?[1-9](?:" MARK "[0-9]){7,15}(?![0-9])" PHONE_END

#define PAIRS "([ .-])[0-9]{2}(?:\\g{-1}[0-9]{2}){3}"
#define NATIONAL                                                                                                       \
    "(?<![0-9][.,:/+*-])(?<![^0-9][0-9]{4} )(?:"                                                                       \
    /* North America */                                                                                                \
    "(?:1[ .-])?[2-9][0-9]{2}[ .-][0-9]{3}[ .-][0-9]{4}|1[ .-]?\\([2-9][0-9]{2}\\) ?[0-9]{3}[ .-]?[0-9]{4}"            \
    /* with the trunk digit 0, but no dates */                                                                         \
    "|0[1-9]" PAIRS "(?![ .-][0-9])"                                                                                   \
    "|(?!(?:[0-9]{2}[./-]){1,2}" YEAR "(?![0-9]|-[0-9]{4}))(?![0-9]{2}[./-][0-9]{2}[./-][0-9]{2}(?: |$))"              \
    "0[1-9][0-9]{0,4}(?: ?[/-] ?|[ .])[0-9]{2,8}(?:[ ./-][0-9]{2,8}){0,5}"                                             \
    /* international, dialled with 00 */                                                                               \
    "|00[1-9][0-9]{0,2}[ ./-][0-9]{1,8}(?:[ ./-][0-9]{2,8}){0,5}"                                                      \
    /* China; Russia; Brazil; Poland, Spain and others with three threes; Spain */                                     \
    "|1[3-9][0-9]([ -])[0-9]{4}\\g{-1}[0-9]{4}"                                                                        \
    "|8[ -]?\\(?[0-9]{3}\\)?[ -]?[0-9]{3}[ -][0-9]{2}[ -][0-9]{2}"                                                     \
    "|[0-9]{2} 9[0-9]{4}-[0-9]{4}"                                                                                     \
    "|[5-9][0-9]{2}-[0-9]{3}-[0-9]{3}"                                                                                 \
    "|[6-9][0-9]{2}([ .])[0-9]{2}\\g{-1}[0-9]{2}\\g{-1}[0-9]{2}"                                                       \
    ")(?<! [0-9]{4}(?= [0-9]{4}))" PHONE_END

/* The area in parentheses, which is not a year; nor are years what follows. */
#define AREA                                                                                                           \
    "(?<![A-Za-z0-9_)\\]])\\((?!" YEAR "\\))(?:0[1-9][0-9]{0,4}|[1-9][0-9]{1,4})\\)(?: ?[/-])? ?"                      \
    "(?!" YEAR "-" YEAR ")[0-9]{2,8}(?:[ ./-][0-9]{2,5}){0,3}" PHONE_END

/* Any nine digits or more where the text says that they are one: neither dates nor addresses of computers. */
#define CALLED                                                                                                         \
    "(?:(?:t[eé]l(?:[eé](?:ph|f)\\p{L}{1,9})?|phones?|mob(?:ile?)?|m[oó]vil|celular|cell|whatsapp|"                    \
    "handy\\p{L}{0,8}|fax\\p{L}{0,8})(?![A-Za-z])|[^\\x00-\\x7f]{2,10}+)"                                              \
    "\\.?(?:[ -]?(?:number|nummer|num|nr|no|n[uú]mero)\\.?)?[\\s\"'*:=#.-]{0,6}+"                                      \
    "(?:(?:is|ist|es|est|é)[\\s\"'*:]{1,4}+)?(?!" YEAR "[./-][0-9]{2}[./-][0-9]{2})"                                   \
    "(?![0-9]{1,3}(?:\\.[0-9]{1,3}){3}(?![0-9]))(\\(?[0-9](?:" MARK "[0-9]){8,14})(?![0-9])" PHONE_END

/* ---- tokens ---- */

/* A template's "xxxx" is no secret. */
static size_t accept_key(const char *text, size_t n) {
    char last = text[n - 1];
    if ((last != 'x' && last != 'X' && last != '*' && last != '.') || n < 8) return n;
    for (size_t i = n - 8; i < n; i++)
        if (text[i] != last) return n;
    return 0;
}

static int contains(const char *text, size_t n, const char *word) {
    size_t m = strlen(word);
    for (size_t i = 0; i + m <= n; i++) {
        size_t j = 0;
        while (j < m && (is_upper(text[i + j]) ? text[i + j] - 'A' + 'a' : text[i + j]) == word[j]) j++;
        if (j == m) return 1;
    }
    return 0;
}

/* What documentation writes in a secret's place. */
static int is_placeholder(const char *text, size_t n) {
    static const char *const words[] = {"example", "your", "xxxx", "****", "....", "placeholder",
                                        "redacted", "insert", "env.", "environ", "://"};
    for (size_t i = 0; i < sizeof words / sizeof *words; i++)
        if (contains(text, n, words[i])) return 1;
    return strchr("$%{/~", text[0]) || (n > 1 && text[0] == '.' && text[1] == '/');
}

struct characters {
    size_t digits, lowers, uppers, others, distinct;
};

static struct characters count_characters(const char *text, size_t n) {
    struct characters count = {0};
    unsigned char seen[256] = {0};
    for (size_t i = 0; i < n; i++) {
        unsigned char c = (unsigned char)text[i];
        count.distinct += !seen[c];
        seen[c] = 1;
        if (is_digit(text[i])) count.digits++;
        else if (is_lower(text[i]) || c >= 0x80) count.lowers++;
        else if (is_upper(text[i])) count.uppers++;
        else count.others++;
    }
    return count;
}

/* Without the full stop of the sentence. */
static size_t trimmed(const char *text, size_t n) {
    while (n > 0 && strchr(".,:;!?", text[n - 1])) n--;
    return n;
}

/* Letters with digits among them, or of both cases with other characters: not a word, not a number. */
static size_t accept_password(const char *text, size_t n) {
    size_t m = trimmed(text, n);
    struct characters count = count_characters(text, m);
    if (m < 6 || count.distinct < 5 || count.lowers + count.uppers == 0) return 0;
    if (count.digits == 0 && (count.lowers == 0 || count.uppers == 0 || count.others == 0)) return 0;
    return is_placeholder(text, m) ? 0 : n;
}

/* Longer, and always with digits: names of a program's parts have none. */
static size_t accept_random(const char *text, size_t n) {
    size_t m = trimmed(text, n);
    struct characters count = count_characters(text, m);
    if (m < 16 || count.distinct < 8 || count.digits == 0 || count.lowers + count.uppers == 0) return 0;
    return is_placeholder(text, m) ? 0 : n;
}

/* ---- private keys of Bitcoin and its kin: Base58Check ---- */

static void hash_twice(const unsigned char *data, size_t n, unsigned char out[32]) {
    char hex[HASH_HEX_SIZE];
    hash_bytes(data, n, hex);
    for (int round = 0;; round++) {
        for (int i = 0; i < 32; i++) {
            int high = hex[2 * i], low = hex[2 * i + 1];
            out[i] = (unsigned char)((high <= '9' ? high - '0' : high - 'a' + 10) << 4 |
                                     (low <= '9' ? low - '0' : low - 'a' + 10));
        }
        if (round == 1) return;
        hash_bytes(out, 32, hex);
    }
}

/* text: of the alphabet. A number to the base 58, of 37 or 38 bytes (a key) or 82 (an extended one), the last
 * four of which are a checksum. */
static size_t accept_base58(const char *text, size_t n) {
    static const char alphabet[] = "123456789ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnopqrstuvwxyz";
    unsigned char bytes[82] = {0}, sum[32];
    size_t used = 0;
    for (size_t i = 0; i < n; i++) {
        const char *at = strchr(alphabet, text[i]);
        if (!at || !*at) return 0;
        unsigned carry = (unsigned)(at - alphabet);
        for (size_t b = 0; b < used || carry; b++) {
            if (b == sizeof bytes) return 0;
            if (b == used) used++;
            carry += 58u * bytes[sizeof bytes - 1 - b];
            bytes[sizeof bytes - 1 - b] = (unsigned char)carry;
            carry >>= 8;
        }
    }
    if (used != 37 && used != 38 && used != 82) return 0;
    const unsigned char *start = bytes + sizeof bytes - used;
    hash_twice(start, used - 4, sum);
    return memcmp(sum, start + used - 4, 4) == 0 ? n : 0;
}

#define BASE58 "[1-9A-HJ-NP-Za-km-z]"

/* A value that is a private key is left to the rule for those. */
static size_t accept_token(const char *text, size_t n) {
    static const char age[] = "AGE-SECRET-KEY-";
    if (n >= sizeof age - 1 && memcmp(text, age, sizeof age - 1) == 0) return 0;
    if (n < 128 && accept_base58(text, n)) return 0;
    return accept_random(text, n);
}

/* Between the lines of a key: also as a string of a program, quoted in a mail, in a patch. */
#define GAP "(?:\\\\[nr]|[\\s\">|#*+-]){0,40}+"
#define PEM                                                                                                            \
    "-{4}[- ]BEGIN (?:[A-Z0-9]{1,12} ){0,4}PRIVATE KEY(?: BLOCK)?[- ]-{4}" GAP                                         \
    "(?:[A-Za-z-]{2,24}: [^\\r\\n\\\\]{0,200}+" GAP "){0,6}+[A-Za-z0-9+/]{20}"

#define BASE64URL "[A-Za-z0-9_-]"

#define JWT                                                                                                            \
    "(?<![.-])eyJ" BASE64URL "{8,}+\\.(?:eyJ" BASE64URL "{8,}+(?:\\." BASE64URL "*+)?+|" BASE64URL "*+(?:\\."          \
    BASE64URL "{8,}+){3}+)"

/* password: hunter22, "api_key" => "...", mein Passwort ist ... */
#define ASSIGNED                                                                                                       \
    "[\"'`\\])*_]{0,4}\\s{0,4}(?:[:=]{1,2}>?|->|(?:is|ist|es|est|é|è|är|to|zu|lautet)(?=[\\s:])|[是为為はが은는])"     \
    "[\\s\"'`*:]{0,8}+([^\\s\"'`<>,;(){}\\[\\]\\x{3000}-\\x{10ffff}]{6,200}+)(?![(\\[{])"
#define NAMED_SECRET                                                                                                   \
    "(?:(?<=api|api[_ -]|cess|cess[_ -]|cret|cret[_ -]|uth|uth[_ -]|tion[_ -]|vate[_ -]|ount[_ -]|ster[_ -]|"          \
    "ning[_ -]|ared[_ -]|hub[_ -])key|token|secret)(?:[_ -]?(?:access|key|id|value|string|base)){0,3}" ASSIGNED

/* What follows a cue in its word is letters, whatever the language. */
#define PASSWORDS                                                                                                      \
    "pass!wo|pass!wd|pass!phr|pass!co|p!wd|kenn!wo|contrase!ñ|contrase!na|se!nha|!passe|wacht!woo|se!nord|sala!sana|"  \
    "par!ola|has!ło|!şifre|аро!л|密!码|密!碼|口!令|ワー!ド|비밀번!호|סיסמ!ה|المرو!ر|รหัสผ่า!น"
#define TELEPHONES                                                                                                     \
    "<te!l|<t!él|<!phone|<mo!b|m!óvil|mo!vil|celu!lar|<ce!ll|<w!hatsapp|<han!dy|<fa!x|те!л|电!话|電!話|手!机|手!機|"   \
    "携!帯|전!화|טלפו!ן|هات!ف"

const struct finding_rule finding_rules[] = {
    {ATTUNE_FINDING_PRIVATE_KEY, 0, "-----!BEGIN |---- !BEGIN ", PEM, NULL},
    {ATTUNE_FINDING_PRIVATE_KEY, 0, "PuTTY-!User-Key-File-",
     "PuTTY-User-Key-File-[1-3]: [A-Za-z0-9-]{3,40}\\s{1,4}Encryption: ", NULL},
    {ATTUNE_FINDING_PRIVATE_KEY, 0, "AGE-SECRET-!KEY-1", "AGE-SECRET-KEY-1[02-9AC-HJ-NP-Z]{58}(?![A-Za-z0-9])", NULL},
    {ATTUNE_FINDING_PRIVATE_KEY, 0, "minisign !secret key|minisign encrypted !secret key",
     "minisign (?:encrypted )?secret key\\s{1,4}RW[A-Za-z0-9+/]{100}", NULL},
    {ATTUNE_FINDING_PRIVATE_KEY, 0, "<!5^^^^^^^^|<!K^^^^^^^^|<!L^^^^^^^^", "[5KL]" BASE58 "{50,51}+(?![A-Za-z0-9])",
     accept_base58},
    {ATTUNE_FINDING_PRIVATE_KEY, 0, "<%pr!v", "[xyzt]prv" BASE58 "{107,108}+(?![A-Za-z0-9])", accept_base58},

    /* OpenAI, Anthropic, OpenRouter and others */
    {ATTUNE_FINDING_TOKEN, 0, "<sk!-",
     "sk-(?:(?:proj|svcacct|admin|None|ant|or|lf)-" BASE64URL "{20,}+|[A-Za-z0-9]{20,}+)", accept_key},
    {ATTUNE_FINDING_TOKEN, 0, "<gh%!_|<github!_pat_", "gh[oprsu]_[A-Za-z0-9]{36,}+|github_pat_[A-Za-z0-9_]{22,}+",
     accept_key},
    {ATTUNE_FINDING_TOKEN, 0, "<!gl", "gl(?:pat|ptt|dt|rt|cbt|ft|soat|imt|agent|oas)-[A-Za-z0-9_=-]{20,}+", accept_key},
    /* Amazon; its secret is one of NAMED_SECRET */
    {ATTUNE_FINDING_TOKEN, 0, "<A!KIA|<A!SIA", "A[KS]IA[2-7A-Z]{16}(?![A-Za-z0-9])", accept_key},
    {ATTUNE_FINDING_TOKEN, 0, "<AI!za|<G!OCSPX-|<ya!29.",
     "AIza" BASE64URL "{35}(?!" BASE64URL ")|GOCSPX-" BASE64URL "{24,}+|ya29\\." BASE64URL "{30,}+", accept_key},
    {ATTUNE_FINDING_TOKEN, 0, "<xo!x|<xap!p-", "xox[a-eo-s]-[A-Za-z0-9.-]{10,}+|xapp-[0-9]-[A-Za-z0-9-]{20,}+",
     accept_key},
    {ATTUNE_FINDING_TOKEN, 0, "hoo!ks.slack.com/|/api/!webhooks/",
     "hooks\\.slack\\.com/(?:services|workflows|triggers)/[A-Za-z0-9+/_-]{20,}+"
     "|/api/webhooks/[0-9]{15,20}/" BASE64URL "{60,}+", accept_key},
    {ATTUNE_FINDING_TOKEN, 0, "<%k!_|<whsec!_",
     "[rs]k_(?:live|test|prod)_[A-Za-z0-9]{10,}+|whsec_[A-Za-z0-9+/]{24,}+", accept_key},
    {ATTUNE_FINDING_TOKEN, 0, "<npm!_|<hf!_", "npm_[A-Za-z0-9]{36,}+|hf_[A-Za-z0-9]{30,}+", accept_key},
    {ATTUNE_FINDING_TOKEN, 0, "<pypi!-Ag", "pypi-AgE" BASE64URL "{16,}+", accept_key},
    {ATTUNE_FINDING_TOKEN, 0, "<S!G.", "SG\\." BASE64URL "{22}\\." BASE64URL "{43}(?!" BASE64URL ")", accept_key},
    {ATTUNE_FINDING_TOKEN, 0, "<S!K", "SK[0-9a-f]{32}(?![A-Za-z0-9])", NULL}, /* Twilio */
    {ATTUNE_FINDING_TOKEN, 0, "<ey!J", JWT, NULL},
    /* Telegram; Discord */
    {ATTUNE_FINDING_TOKEN, 0, "#!:", "[0-9]:(?<=[0-9]{8}:)" BASE64URL "{35}(?!" BASE64URL ")", NULL},
    {ATTUNE_FINDING_TOKEN, 0, "<!M^^^^^^^^|<!N^^^^^^^^|<!O^^^^^^^^",
     "[MNO]" BASE64URL "{23,27}\\." BASE64URL "{6,7}\\." BASE64URL "{27,40}(?!" BASE64URL ")", accept_random},
    {ATTUNE_FINDING_TOKEN, FINDING_CASELESS | FINDING_VALUE, "<!bearer ",
     "bearer[ \\t]{1,4}([A-Za-z0-9._~+/-]{16,}+)", accept_random},
    {ATTUNE_FINDING_TOKEN, FINDING_CASELESS | FINDING_VALUE, "authori!zation",
     "authorization[\"']?\\s{0,4}[:=]\\s{0,4}[\"']?(?:basic|token|apikey)[ \\t]{1,4}([A-Za-z0-9._~+/=-]{8,512}+)",
     accept_password},
    {ATTUNE_FINDING_TOKEN, 0, "!://",
     "://[^\\s/:@?#\"'<>`]{0,64}:(?![$<{%*])[^\\s/:@?#\"'<>`]{1,128}@[\\p{L}\\p{N}\\[]", NULL},
    {ATTUNE_FINDING_TOKEN, FINDING_CASELESS | FINDING_VALUE, PASSWORDS, "\\p{L}[\\p{L}\\p{M}]{1,23}" ASSIGNED,
     accept_password},
    {ATTUNE_FINDING_TOKEN, FINDING_CASELESS | FINDING_VALUE, "!key|to!ken|se!cret", NAMED_SECRET, accept_token},

    {ATTUNE_FINDING_CARD, 0, "<!####", CARD, accept_card},
    {ATTUNE_FINDING_IBAN, FINDING_CASELESS, "<%%!##", IBAN, accept_iban},
    {ATTUNE_FINDING_EMAIL, FINDING_CASELESS, "!@", EMAIL, NULL},
    {ATTUNE_FINDING_PHONE, 0, "!+#|!+(", INTERNATIONAL, accept_international},
    {ATTUNE_FINDING_PHONE, 0, "<!##|<!1 |<!1-|<!1.|<!1(|<!8 |<!8-|<!8(", NATIONAL, accept_national},
    {ATTUNE_FINDING_PHONE, 0, "!(##", AREA, digits_9_to_15},
    {ATTUNE_FINDING_PHONE, FINDING_CASELESS | FINDING_VALUE, TELEPHONES, CALLED, digits_9_to_15},
};
const size_t finding_rules_count = sizeof finding_rules / sizeof *finding_rules;
