//! When a failed attempt is made again.

use std::time::{Duration, SystemTime};

use http::header::RETRY_AFTER;
use http::{HeaderMap, StatusCode};
use tokio::time::Instant;

/// Attempts of one call.
const ATTEMPTS_MAX: u32 = 12;
/// Attempts of one call that fail otherwise than by a limit of the provider.
const FAULTS_MAX: u32 = 4;
/// Wait before the second attempt; doubles with each further one.
const BACKOFF_FIRST: Duration = Duration::from_millis(500);
/// The longest wait that a provider has not asked for.
const BACKOFF_MAX: Duration = Duration::from_secs(15);
/// The longest wait that a provider may ask for; one that asks for more is not asked again.
const RETRY_AFTER_MAX: Duration = Duration::from_secs(60);
/// From the first attempt to the last, at most.
const RETRYING_MAX: Duration = Duration::from_secs(90);

/// What went wrong with an attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trouble {
    /// The provider has a limit, or is overloaded.
    Limit,
    /// Anything else that may be better next time.
    Fault,
}

impl Trouble {
    /// Whether, and as what, an answer is worth another attempt.
    pub fn of(status: StatusCode, headers: &HeaderMap) -> Option<Self> {
        match headers.get("x-should-retry").map(http::HeaderValue::as_bytes) {
            Some(b"false") => return None,
            Some(b"true") if !status.is_success() => return Some(Self::Limit),
            _ => {}
        }
        match status.as_u16() {
            429 | 529 => Some(Self::Limit),
            // What is down says so, too, without a word of when to come back.
            503 if headers.contains_key(RETRY_AFTER) => Some(Self::Limit),
            501 => None,
            408 | 409 | 500.. => Some(Self::Fault),
            _ => None,
        }
    }
}

/// The attempts of one call.
#[derive(Debug)]
pub struct Backoff {
    begun: Instant,
    attempts: u32,
    faults: u32,
}

impl Backoff {
    /// Before the first attempt.
    pub fn new() -> Self {
        Self { begun: Instant::now(), attempts: 0, faults: 0 }
    }

    /// The wait before the next attempt, after one has failed; `None` if there is to be none.
    pub fn next(&mut self, trouble: Trouble, retry_after: Option<Duration>) -> Option<Duration> {
        self.attempts += 1;
        self.faults += u32::from(trouble == Trouble::Fault);
        if self.attempts >= ATTEMPTS_MAX || self.faults >= FAULTS_MAX {
            return None;
        }
        // Jitter: calls that failed together should not come back together.
        let jitter = rand::random_range(0.0..0.25);
        let doubled = BACKOFF_FIRST.saturating_mul(1 << (self.attempts - 1).min(16)).min(BACKOFF_MAX);
        let doubled = doubled.mul_f64(1.0 - jitter);
        let wait = match retry_after {
            Some(asked) if asked > RETRY_AFTER_MAX => return None,
            // It says when at the earliest; who is refused again and again comes less often all the same.
            Some(asked) => doubled.max(asked + BACKOFF_FIRST.mul_f64(jitter)),
            None => doubled,
        };
        (self.begun.elapsed() + wait <= RETRYING_MAX).then_some(wait)
    }
}

/// What an answer says of when to come back.
pub fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok()).map(str::trim);
    let seconds = |text: &str| Duration::try_from_secs_f64(text.parse::<f64>().ok()?).ok();
    if let Some(wait) = text("retry-after-ms").and_then(seconds) {
        return Some(wait / 1000);
    }
    let said = text("retry-after")?;
    let until = || httpdate::parse_http_date(said).ok()?.duration_since(SystemTime::now()).ok();
    seconds(said).or_else(until)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_worth_another_attempt() {
        for (status, expected) in [
            (200, None),
            (400, None),
            (401, None),
            (404, None),
            (413, None),
            (501, None),
            (408, Some(Trouble::Fault)),
            (409, Some(Trouble::Fault)),
            (429, Some(Trouble::Limit)),
            (500, Some(Trouble::Fault)),
            (502, Some(Trouble::Fault)),
            (503, Some(Trouble::Fault)),
            (529, Some(Trouble::Limit)),
        ] {
            let status = StatusCode::from_u16(status).unwrap();
            assert_eq!(Trouble::of(status, &HeaderMap::new()), expected, "{status}");
            let never = HeaderMap::from_iter([("x-should-retry".parse().unwrap(), "false".parse().unwrap())]);
            assert_eq!(Trouble::of(status, &never), None, "{status}");
        }
    }

    #[test]
    fn retry_after_in_every_spelling() {
        let of = |name: &'static str, value: &str| {
            retry_after(&HeaderMap::from_iter([(name.parse().unwrap(), value.parse().unwrap())]))
        };
        assert_eq!(of("retry-after", "7"), Some(Duration::from_secs(7)));
        assert_eq!(of("retry-after", "0.5"), Some(Duration::from_millis(500)));
        assert_eq!(of("retry-after-ms", "250"), Some(Duration::from_millis(250)));
        let soon = httpdate::fmt_http_date(SystemTime::now() + Duration::from_secs(30));
        assert!(of("retry-after", &soon).is_some_and(|wait| wait > Duration::from_secs(25)));
        for bad in ["-1", "NaN", "inf", "soon", "", "1e300"] {
            assert_eq!(of("retry-after", bad), None, "{bad:?}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn attempts_are_bounded_in_number_and_time() {
        let begun = Instant::now();
        for (trouble, retry_after, most) in [
            (Trouble::Fault, None, 4),
            (Trouble::Limit, None, ATTEMPTS_MAX),
            (Trouble::Limit, Some(Duration::from_secs(40)), 3),
            (Trouble::Limit, Some(Duration::from_secs(3600)), 1),
            (Trouble::Limit, Some(Duration::ZERO), ATTEMPTS_MAX),
        ] {
            let mut backoff = Backoff::new();
            let started = Instant::now();
            let mut attempts = 1;
            while let Some(wait) = backoff.next(trouble, retry_after) {
                assert!(wait <= RETRY_AFTER_MAX + BACKOFF_FIRST);
                tokio::time::advance(wait).await;
                attempts += 1;
            }
            assert!(attempts <= most, "{trouble:?} {retry_after:?}: {attempts}");
            assert!(started.elapsed() <= RETRYING_MAX);
        }
        // A minute of 429 is outlasted.
        assert!(begun.elapsed() > Duration::from_secs(60));
    }
}
