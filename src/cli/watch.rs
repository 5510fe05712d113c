//! `hotpool pools watch`: what happens in a pool, a line an event.

use clap::Args;
use serde::Deserialize;

use super::CommandContext;
use super::args;
use super::client::{CommandExit, CommandFailure};
use super::output::{OutputFormat, duration, print};
use super::pools::path;
use crate::model::PoolName;

/// Tell what happens in a pool, until it is stopped.
#[derive(Debug, Args)]
pub(super) struct WatchPoolArgs {
    /// NAMESPACE/POOL
    #[arg(value_name = "NS/POOL", value_parser = args::parse_pool)]
    pool: PoolName,
    /// Go on behind the event with this position
    #[arg(long, value_name = "POSITION")]
    from: Option<String>,
}

#[derive(Deserialize)]
struct PoolEventReply {
    event: String,
    position: String,
    worker: Option<String>,
    tenant: Option<String>,
    key: Option<String>,
    fence: Option<u64>,
    reason: Option<String>,
    count: Option<u64>,
    at_ms: Option<u64>,
    created_at_ms: Option<u64>,
}

impl WatchPoolArgs {
    pub(super) async fn run(self, context: &CommandContext) -> Result<CommandExit, CommandFailure> {
        let mut query = form_urlencoded::Serializer::new(String::new());
        query.extend_pairs(self.from.iter().map(|from| ("from", from)));
        let mut events = context.client.events(&format!("{}/events?{}", path(&self.pool), query.finish())).await?;
        let mut last = self.from;
        while let Some(json) = events.next().await? {
            let event: PoolEventReply = context.client.read(&json)?;
            match context.output {
                OutputFormat::Json => print(json.get())?,
                OutputFormat::Table => print(&event.line())?,
            }
            last = Some(event.position);
        }
        let from = last.map_or_else(String::new, |last| format!("; go on with --from {last}"));
        Err(CommandFailure::ended(format!("the service ended the events: it stops, or the pool is gone{from}")))
    }
}

impl PoolEventReply {
    /// `1795367775333526-7  claimed     w1  default/job-1  fence 1795367775330505`
    fn line(&self) -> String {
        let claim = match (&self.tenant, &self.key) {
            (Some(tenant), Some(key)) => Some(format!("{tenant}/{key}")),
            _ => None,
        };
        // Of one that begins there is nothing to say yet.
        let held = match (self.at_ms, self.created_at_ms) {
            (Some(at), Some(created)) if self.event != "claimed" => {
                Some(format!("after {}", duration(at.saturating_sub(created))))
            }
            _ => None,
        };
        let missed = match (self.event.as_str(), self.count) {
            ("missed", Some(count)) => Some(format!("{count} events")),
            ("missed", None) => Some("nobody knows how many events; list the pool anew".to_owned()),
            _ => None,
        };
        let words = [
            self.worker.clone(),
            claim,
            self.fence.map(|fence| format!("fence {fence}")),
            held,
            self.reason.as_ref().map(|reason| format!("({reason})")),
            missed,
        ];
        let words: Vec<String> = words.into_iter().flatten().collect();
        format!("{}  {:<10}  {}", self.position, self.event, words.join("  ")).trim_end().to_owned()
    }
}
