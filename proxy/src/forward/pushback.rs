//! When a server that has refused a request wants to be asked again.
//!
//! Pure: reads `Retry-After`, in seconds or as a date (RFC 9110 §10.2.3), and gRPC's `grpc-retry-pushback-ms` (gRFC A6), which forbids it
//! where it is negative or cannot be read. Called by `again`.

use std::time::{Duration, SystemTime};

use http::{HeaderMap, HeaderName, header};

/// What an answer says of being asked again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Pushback {
    /// Nothing.
    Silent,
    /// Not before so much time has passed.
    After(Duration),
    /// Not at all.
    Never,
}

const GRPC_PUSHBACK: HeaderName = HeaderName::from_static("grpc-retry-pushback-ms");

/// What these fields of an answer say, which came `now`. Of what cannot be read, `Retry-After` is as if it were not there.
pub(super) fn pushback(fields: &HeaderMap, now: SystemTime) -> Pushback {
    if let Some(value) = fields.get(GRPC_PUSHBACK) {
        let milliseconds = value.to_str().ok().and_then(|text| text.parse::<u32>().ok());
        return milliseconds
            .map_or(Pushback::Never, |after| Pushback::After(Duration::from_millis(after.into())));
    }
    let Some(text) = fields.get(header::RETRY_AFTER).and_then(|value| value.to_str().ok()) else {
        return Pushback::Silent;
    };
    let text = text.trim();
    if !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit()) {
        return Pushback::After(text.parse().map_or(Duration::MAX, Duration::from_secs));
    }
    match httpdate::parse_http_date(text) {
        Ok(then) => Pushback::After(then.duration_since(now).unwrap_or_default()),
        Err(_) => Pushback::Silent,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_said_is_read_and_what_cannot_be_read_of_grpc_forbids() {
        // Sun, 06 Nov 1994 08:49:37 GMT
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(784_111_777);
        let seconds = |seconds| Pushback::After(Duration::from_secs(seconds));
        for (name, value, said) in [
            ("retry-after", "0", seconds(0)),
            ("retry-after", " 120 ", seconds(120)),
            ("retry-after", "99999999999999999999", Pushback::After(Duration::MAX)),
            ("retry-after", "Sun, 06 Nov 1994 08:49:39 GMT", seconds(2)),
            // The other forms that a recipient must take (RFC 9110 §5.6.7).
            ("retry-after", "Sunday, 06-Nov-94 08:49:39 GMT", seconds(2)),
            ("retry-after", "Sun Nov  6 08:49:39 1994", seconds(2)),
            ("retry-after", "Sun, 06 Nov 1994 08:00:00 GMT", seconds(0)),
            ("retry-after", "-1", Pushback::Silent),
            ("retry-after", "1.5", Pushback::Silent),
            ("retry-after", "soon", Pushback::Silent),
            ("retry-after", "", Pushback::Silent),
            ("grpc-retry-pushback-ms", "1500", Pushback::After(Duration::from_millis(1500))),
            ("grpc-retry-pushback-ms", "-1", Pushback::Never),
            ("grpc-retry-pushback-ms", "soon", Pushback::Never),
            ("other", "1", Pushback::Silent),
        ] {
            let fields = HeaderMap::from_iter([(name.parse().unwrap(), value.parse().unwrap())]);
            assert_eq!(pushback(&fields, now), said, "{name}: {value}");
        }
    }
}
