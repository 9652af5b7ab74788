-- serves: 1
--
-- What nodes announced: one row a node, replaced by each announce and soon out of date, so nothing is lost with a crash
-- that the nodes do not say again within seconds. Hence unlogged.
--
-- Every tracker process keeps the live rows in memory and reads what the others changed since it read last. Changes are
-- numbered under an advisory lock that is held until the commit, so they become visible in the order of their numbers.

create sequence announce_changes;

create unlogged table announces (
    peer_id text collate "C" primary key,
    swarm text not null,
    url text not null,
    zone text not null,
    want digest[] not null,
    hold digest[] not null,
    change bigint not null,
    -- By this database's clock; a node that says nothing until gone_at is gone.
    seen_at timestamptz not null,
    gone_at timestamptz not null
) with (fillfactor = 50, autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 2000);
create index announces_change on announces (change);
