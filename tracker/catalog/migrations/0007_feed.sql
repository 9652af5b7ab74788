-- serves: 3
--
-- What nodes are told of changes: what a reader who was away must know of what is no more, and for how long that is
-- kept. And where each tag has pointed, so that it can be put back.

-- Changes of things that are gone are forgotten after a while; this is the last one that was. Who knows less than that
-- has to begin anew.
alter table change_state add column pruned bigint not null default 0;

-- Of a repository that was public and is not any more (private, deleted, renamed): the change with which that came. Who
-- may not see it is told that it is gone if it could see it before, and of others is told nothing at all.
alter table changes add column public_until bigint;

create function note_repository_change(of_name text, is_gone boolean, was_public boolean)
returns void language plpgsql as $$
begin
    perform note_change('repository', of_name, '', null, is_gone);
    if was_public then
        update changes set public_until = number where kind = 'repository' and repository = of_name and name = '';
    end if;
end
$$;

create or replace function note_repository() returns trigger language plpgsql as $$
begin
    if tg_op = 'INSERT' then
        perform note_repository_change(new.name, false, false);
        return null;
    end if;
    if tg_op = 'DELETE' or old.name <> new.name then
        perform note_repository_change(old.name, true, not old.private);
    end if;
    if tg_op = 'UPDATE' then
        perform note_repository_change(new.name, false, old.name = new.name and new.private and not old.private);
    end if;
    return null;
end
$$;

-- ----------------------------------------------------------------------------------------------------------- history

-- Where a tag has pointed since when; digest null: it was deleted. Goes with the repository, also to another name.
create table tag_history (
    id bigint generated always as identity primary key,
    repository_id bigint not null references repositories on delete cascade,
    tag text collate "C" not null,
    digest digest,
    at timestamptz not null default clock_timestamp(),
    -- The actor of the audit log; empty: not known.
    actor text not null default ''
);
create index tag_history_tag on tag_history (repository_id, tag, id);
create index tag_history_at on tag_history (at);

-- Every write says in the audit log who it is of, in its own transaction: that is who moves the tags of it.
create function note_actor() returns trigger language plpgsql as $$
begin
    perform set_config('p2pregistry.actor', coalesce(new.actor, ''), true);
    return new;
end
$$;
create trigger note_actor before insert on audit for each row execute function note_actor();

create or replace function note_tag() returns trigger language plpgsql as $$
declare
    of_tag record;
    repository_name text;
    now_digest bytea;
begin
    if tg_op = 'DELETE' then of_tag := old; else of_tag := new; end if;
    select name into repository_name from repositories where id = of_tag.repository_id;
    if repository_name is null then
        return null; -- it went with its repository, which is a change of its own
    end if;
    select m.digest into now_digest from tags t join manifests m on m.id = t.manifest_id
    where t.repository_id = of_tag.repository_id and t.name = of_tag.name;
    perform note_change('tag', repository_name, of_tag.name, now_digest, now_digest is null);
    if now_digest is distinct from (
        select h.digest from tag_history h
        where h.repository_id = of_tag.repository_id and h.tag = of_tag.name order by h.id desc limit 1
    ) then
        insert into tag_history (repository_id, tag, digest, actor) values (
            of_tag.repository_id, of_tag.name, now_digest, coalesce(current_setting('p2pregistry.actor', true), '')
        );
    end if;
    return null;
end
$$;

insert into tag_history (repository_id, tag, digest, at)
select t.repository_id, t.name, m.digest, t.updated_at from tags t join manifests m on m.id = t.manifest_id
order by t.updated_at, t.repository_id, t.name;
