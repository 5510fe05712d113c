//! Where an event stands among all that a pool told: `epoch-number`. Opaque to callers, who hand it back.

use std::fmt;
use std::str::FromStr;

use crate::model::request_error::RequestError;

/// A position. Within one epoch numbers grow by 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EventPosition {
    /// Of one unbroken thread of events.
    pub epoch: u64,
    /// Of the event in it, from 1.
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
            let plain = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
            text.parse().ok().filter(|_| plain)
        };
        text.split_once('-')
            .and_then(|(epoch, of)| Some(Self { epoch: number(epoch)?, number: number(of)? }))
            .ok_or_else(|| RequestError::invalid("from", "must be a position that was told, as in 1795367775333526-42"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_position_is_read_as_it_is_written() {
        let position = EventPosition { epoch: u64::MAX, number: 7 };
        assert_eq!(position.to_string().parse(), Ok(position));
        for text in ["", "-", "1", "1-", "-1", "1-2-3", "+1-2", "1- 2", "a-1", "18446744073709551616-1"] {
            assert!(text.parse::<EventPosition>().is_err(), "{text:?}");
        }
    }
}
