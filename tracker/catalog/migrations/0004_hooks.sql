-- serves: 3
--
-- Which events have been turned into deliveries. A cursor over ids would lose events: a lower id can become visible
-- after a higher one. Programs of schema 3 write events as before, and they are found later.

alter table events add column fanned_out boolean not null default false;
create index events_to_fan_out on events (id) where not fanned_out;
create index deliveries_event on deliveries (event_id);
