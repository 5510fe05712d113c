//! The service over real sockets: the binary is started, and asked as a client would ask it.

mod bad_input;
mod choice;
mod claims;
mod cli;
mod client;
mod connections;
mod declared_pools;
mod examples;
mod explain;
mod gangs;
mod grpc;
mod half_close;
mod hang_up;
mod heartbeats;
mod life;
mod lifecycle;
mod load;
mod openapi;
mod pools;
mod quotas;
mod resp;
mod server;
mod shares;
mod waiting;
mod watch;
mod workers;
