//! Brokers of messages.

use tulle_tests::netns::in_a_node;
use tulle_tests::peer;

use crate::{Mesh, declared, large, undeclared};

#[test]
#[ignore = "needs rabbitmq-server and amqp-tools"]
fn rabbitmq_brings_messages_to_amqp_clients() {
    in_a_node(async || {
        let ports = [undeclared(5672), declared(15672, "amqp")];
        let mesh = Mesh::start(&ports).await;
        let [first, second] = ports.map(|port| port.number);
        // Its own node and port mapper stay on loopback.
        let _server = mesh
            .serve(
                &format!(
                    "printf 'listeners.tcp.1 = :::{first}\\nlisteners.tcp.2 = :::{second}\\nloopback_users = none\\n' >$DIR/rabbitmq.conf
                     export HOME=$DIR RABBITMQ_CONFIG_FILE=$DIR/rabbitmq RABBITMQ_MNESIA_BASE=$DIR/mnesia RABBITMQ_LOG_BASE=$DIR \
                     RABBITMQ_LOGS=- RABBITMQ_NODENAME=rabbit@localhost RABBITMQ_ENABLED_PLUGINS_FILE=$DIR/plugins \
                     RABBITMQ_PID_FILE=$DIR/pid RABBITMQ_CONF_ENV_FILE=$DIR/none LANG=C.UTF-8 ERL_EPMD_ADDRESS=127.0.0.1
                     exec /usr/lib/rabbitmq/bin/rabbitmq-server"
                ),
                &ports,
            )
            .await;
        for (index, to) in mesh.addresses().enumerate() {
            let (server, queue) = (format!("--url=amqp://{to}"), format!("q{index}"));
            mesh.client(&format!("amqp-declare-queue {server} -q {queue}")).await;
            let publish =
                format!("head -c {} /dev/zero | tr '\\0' x | amqp-publish {server} -r {queue}", large());
            mesh.client(&publish).await;
            assert_eq!(
                mesh.client(&format!("amqp-get {server} -q {queue} | wc -c")).await.trim(),
                large().to_string()
            );
            // A consumer that is there first gets what comes later.
            let consumed = mesh
                .client(&format!(
                    "amqp-consume {server} -q {queue} -c 3 cat >got & \
                     for n in 1 2 3; do amqp-publish {server} -r {queue} -b \"message $n \"; done; wait $!; \
                     cat got"
                ))
                .await;
            assert_eq!(consumed, "message 1 message 2 message 3 ");
        }
        mesh.has_relayed(2 * large(), 2 * large()).await;
    });
}

#[test]
#[ignore = "needs nats-server and the Python of TULLE_TEST_PYTHON"]
fn nats_greets_its_client_and_brings_messages() {
    in_a_node(async || {
        let ports = [undeclared(4222), declared(14222, "nats")];
        let mesh = Mesh::start(&ports).await;
        let mut servers = Vec::new();
        for port in &ports {
            servers.push(mesh.serve(&format!("exec nats-server -a :: -p {}", port.number), &[*port]).await);
        }
        let client = peer::python("nats_client.py").expect("a Python");
        let [_, script] = &client.arguments[..] else { panic!("{client:?}") };
        for to in mesh.addresses() {
            let run = format!("{} {} nats://{to} 1000000", client.path.display(), script.display());
            assert_eq!(mesh.client(&run).await.trim(), "all came back");
        }
        mesh.has_relayed(4_000_000, 4_000_000).await;
    });
}
