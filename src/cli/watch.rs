//! `hotpool pools watch`: the events of a pool, one a line.

use clap::Args;
use futures::stream::StreamExt as _;

use super::CommandContext;
use super::args::PoolNameArg;
use super::failure::{CommandExit, CommandFailure};
use super::output::duration;
use crate::client::WatchedEvent;

/// Print the events of a pool, one a line, until stopped
#[derive(Debug, Args)]
pub(super) struct WatchPoolArgs {
    #[command(flatten)]
    name: PoolNameArg,
    /// Resume after the event at this position
    #[arg(long, value_name = "POSITION")]
    from: Option<String>,
}

impl WatchPoolArgs {
    pub(super) async fn run(self, context: &CommandContext) -> Result<CommandExit, CommandFailure> {
        let mut events = context.client.watch_pool(&self.name.pool, self.from.as_deref()).await?;
        let mut last = self.from;
        while let Some(event) = events.next().await.transpose()? {
            context.print_reply(&event, event_line)?;
            last = Some(event.into_value().position);
        }
        let resume = last.map_or_else(String::new, |last| format!("; resume with --from {last}"));
        let message = format!("the service ended the events: it stops, or the pool is deleted{resume}");
        Err(CommandFailure::ended(message))
    }
}

/// Formats an event: `1795367775333526-7  claimed     w1  default/job-1  fence 1795367775330505`.
fn event_line(event: &WatchedEvent) -> String {
    let claim = event.tenant.as_ref().zip(event.key.as_ref()).map(|(tenant, key)| format!("{tenant}/{key}"));
    // A claim that begins has no age yet.
    let age = match (event.at_ms, event.created_at_ms) {
        (Some(at), Some(created)) if event.event != "claimed" => {
            Some(format!("after {}", duration(at.saturating_sub(created))))
        }
        _ => None,
    };
    let missed = match (event.event.as_str(), event.count) {
        ("missed", Some(count)) => Some(format!("{count} events")),
        ("missed", None) => Some("an unknown number of events; list the pool again".to_owned()),
        _ => None,
    };
    let details = [
        event.worker.clone(),
        claim,
        event.fence.map(|fence| format!("fence {fence}")),
        age,
        event.reason.as_ref().map(|reason| format!("({reason})")),
        missed,
    ];
    let details: Vec<String> = details.into_iter().flatten().collect();
    format!("{}  {:<10}  {}", event.position, event.event, details.join("  ")).trim_end().to_owned()
}
