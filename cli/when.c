/* When something was, as people write it:
 *   2025-01-31                     midnight, local time
 *   2025-01-31T09:30[:15[.250]]    local time; a space may stand for the T
 *   2025-01-31T09:30Z, ...+01:00   that zone's (ISO 8601)
 *   45s 90m 2h 1.5d 3w             so long before now */
#include "cli/cli.h"

#include <ctype.h>
#include <string.h>
#include <time.h>

static const int64_t LAST_SECOND = INT64_C(253402300799); /* 9999-12-31T23:59:59Z */

/* Exactly n digits at *at, which moves behind them. */
static bool take_digits(const char **at, int n, int *out) {
    *out = 0;
    for (int i = 0; i < n; i++, ++*at) {
        if (!isdigit((unsigned char)**at)) return false;
        *out = *out * 10 + (**at - '0');
    }
    return true;
}

static bool take(const char **at, char c) {
    if (**at != c) return false;
    ++*at;
    return true;
}

static int days_in_month(int year, int month) {
    static const int days[] = {31, 28, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31};
    bool leap = (year % 4 == 0 && year % 100 != 0) || year % 400 == 0;
    return days[month - 1] + (month == 2 && leap);
}

static bool take_date(const char **at, struct tm *tm) {
    int year, month, day;
    if (!take_digits(at, 4, &year) || !take(at, '-') || !take_digits(at, 2, &month) || !take(at, '-')) return false;
    if (!take_digits(at, 2, &day) || month < 1 || month > 12 || day < 1 || day > days_in_month(year, month))
        return false;
    tm->tm_year = year - 1900;
    tm->tm_mon = month - 1;
    tm->tm_mday = day;
    return true;
}

/* HH:MM[:SS[.fraction]] */
static bool take_time(const char **at, struct tm *tm, int *ms) {
    if (!take_digits(at, 2, &tm->tm_hour) || !take(at, ':') || !take_digits(at, 2, &tm->tm_min)) return false;
    if (tm->tm_hour > 23 || tm->tm_min > 59) return false;
    if (!take(at, ':')) return true;
    if (!take_digits(at, 2, &tm->tm_sec) || tm->tm_sec > 59) return false;
    if (!take(at, '.')) return true;
    size_t n = strspn(*at, "0123456789");
    if (n < 1 || n > 9) return false;
    for (size_t i = 0; i < 3; i++) *ms = *ms * 10 + (i < n ? (*at)[i] - '0' : 0);
    *at += n;
    return true;
}

/* "Z" or "+hh:mm" up to the end of the text: minutes east of Greenwich. */
static bool take_zone(const char *at, int *minutes) {
    int hours, rest, sign = *at == '-' ? -1 : 1;
    *minutes = 0;
    if (strcmp(at, "Z") == 0) return true;
    if (!take(&at, '+') && !take(&at, '-')) return false;
    if (!take_digits(&at, 2, &hours) || !take(&at, ':') || !take_digits(&at, 2, &rest)) return false;
    if (*at || hours > 23 || rest > 59) return false;
    *minutes = sign * (hours * 60 + rest);
    return true;
}

static bool parse_date(const char *text, int64_t *ms) {
    struct tm tm = {.tm_isdst = -1};
    int fraction = 0, minutes = 0;
    int64_t seconds;
    if (!take_date(&text, &tm)) return false;
    if (*text && ((!take(&text, 'T') && !take(&text, ' ')) || !take_time(&text, &tm, &fraction))) return false;
    if (*text && !take_zone(text, &minutes)) return false;
    if (*text) {
        tm.tm_isdst = 0;
        seconds = (int64_t)timegm(&tm) - minutes * 60;
    } else {
        seconds = (int64_t)mktime(&tm);
    }
    if (seconds < 0 || seconds > LAST_SECOND) return false;
    *ms = seconds * 1000 + fraction;
    return *ms > 0;
}

bool cli_parse_when(const char *text, int64_t now_ms, int64_t *ms) {
    static const double units[] = {1, 60, 3600, 86400, 604800};
    size_t n = strlen(text);
    double seconds;
    if (n < 2 || !islower((unsigned char)text[n - 1])) return parse_date(text, ms);
    if (!cli_parse_scaled(text, "smhdw", units, 1e12, &seconds)) return false;
    if (seconds * 1000 >= (double)now_ms) return false;
    *ms = now_ms - (int64_t)(seconds * 1000);
    return true;
}
