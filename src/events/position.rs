//! Position of an event among all events of a pool: `epoch-number`. Opaque to callers, who pass it back.

use std::fmt;
use std::str::FromStr;

use crate::model::request_error::RequestError;

/// Position in a pool's events. Within one epoch numbers grow by 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EventPosition {
    /// Epoch, within which events are numbered without gaps.
    pub epoch: u64,
    /// Number of the event in its epoch, from 1.
    pub number: u64,
}

impl fmt::Display for EventPosition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.epoch, self.number)
    }
}

impl FromStr for EventPosition {
    type Err = RequestError;

    fn from_str(text: &str) -> Result<Self, RequestError> {
        let number = |text: &str| {
            let only_digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
            text.parse().ok().filter(|_| only_digits)
        };
        text.split_once('-')
            .and_then(|(epoch, index)| Some(Self { epoch: number(epoch)?, number: number(index)? }))
            .ok_or_else(|| {
                RequestError::invalid("from", "must be the position of an earlier event, such as 1795367775333526-42")
            })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_position_is_parsed_as_it_is_printed() {
        let position = EventPosition { epoch: u64::MAX, number: 7 };
        assert_eq!(position.to_string().parse(), Ok(position));
        for text in ["", "-", "1", "1-", "-1", "1-2-3", "+1-2", "1- 2", "a-1", "18446744073709551616-1"] {
            assert!(text.parse::<EventPosition>().is_err(), "{text:?}");
        }
    }
}
