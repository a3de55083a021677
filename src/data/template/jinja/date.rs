//! Today's date for templates that print it, in UTC, with the codes of `strftime` that dates and times need.
//!
//! Days become dates by the civil calendar algorithm (Howard Hinnant, "chrono-compatible low-level date algorithms").

/// A moment.
#[derive(Debug, Clone, Copy)]
pub struct Moment {
    /// Seconds since 1970.
    seconds: i64,
}

const DAYS: [&str; 7] = ["Sunday", "Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday"];
const MONTHS: [&str; 12] = [
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
];

/// Now, or the moment that `SOURCE_DATE_EPOCH` names.
pub fn today() -> Moment {
    let named = std::env::var("SOURCE_DATE_EPOCH").ok().and_then(|value| value.trim().parse().ok());
    let now = || std::time::UNIX_EPOCH.elapsed().map_or(0, |elapsed| elapsed.as_secs() as i64);
    // The year 9999 bounds what the arithmetic has to hold.
    Moment { seconds: named.unwrap_or_else(now).clamp(0, 253_402_300_799) }
}

impl Moment {
    /// Year, month (1–12) and day (1–31).
    fn date(self) -> (i64, usize, i64) {
        let days = self.seconds.div_euclid(86_400) + 719_468;
        let era = days.div_euclid(146_097);
        let day_of_era = days.rem_euclid(146_097);
        let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
        let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
        let month = (5 * day_of_year + 2) / 153;
        let day = day_of_year - (153 * month + 2) / 5 + 1;
        let month = if month < 10 { month + 3 } else { month - 9 };
        (year_of_era + era * 400 + i64::from(month <= 2), month as usize, day)
    }

    /// `format` with its `%` codes filled in; unknown codes stay as they are.
    pub fn format(self, format: &str) -> String {
        let (year, month, day) = self.date();
        let weekday = DAYS[(self.seconds.div_euclid(86_400) + 4).rem_euclid(7) as usize];
        let of_day = self.seconds.rem_euclid(86_400);
        let mut text = String::new();
        let mut characters = format.chars();
        while let Some(character) = characters.next() {
            if character != '%' {
                text.push(character);
                continue;
            }
            match characters.next() {
                Some('d') => text += &format!("{day:02}"),
                Some('m') => text += &format!("{month:02}"),
                Some('Y') => text += &year.to_string(),
                Some('y') => text += &format!("{:02}", year % 100),
                Some('B') => text += MONTHS[month - 1],
                Some('b') => text += &MONTHS[month - 1][..3],
                Some('A') => text += weekday,
                Some('a') => text += &weekday[..3],
                Some('H') => text += &format!("{:02}", of_day / 3600),
                Some('M') => text += &format!("{:02}", of_day / 60 % 60),
                Some('S') => text += &format!("{:02}", of_day % 60),
                Some('%') => text.push('%'),
                Some(other) => text.extend(['%', other]),
                None => text.push('%'),
            }
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moments_are_written_as_python_writes_them() {
        // datetime.fromtimestamp(seconds, timezone.utc).strftime(...)
        let written = |seconds| Moment { seconds }.format("%a %A %d %b %B %Y-%m-%y %H:%M:%S %%%q");
        assert_eq!(written(0), "Thu Thursday 01 Jan January 1970-01-70 00:00:00 %%q");
        assert_eq!(written(1_709_164_800 + 86_399), "Thu Thursday 29 Feb February 2024-02-24 23:59:59 %%q");
        assert_eq!(written(4_107_542_400), "Mon Monday 01 Mar March 2100-03-00 00:00:00 %%q");
    }
}
