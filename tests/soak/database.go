package soak

import (
	"context"
	"embed"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"stillpoint.io/stillpoint/tests/cluster/bed"
)

//go:embed manifests
var manifests embed.FS

const (
	// loadRate is how many transactions pgbench begins in a second.
	loadRate = 60
	// loadPause lies between two writes of a connection to the others, in seconds.
	loadPause = 0.05
)

// database is one of those that are backed up.
type database struct {
	name, image, container string
	// recipe is the built-in blueprint for it.
	recipe string
	// load says that the load is a Deployment of that name.
	load bool
	// tally is what the database has acknowledged at this moment, in words that
	// judge understands. It grows as the load works.
	tally func(ctx context.Context, at place) (string, error)
	// judge says what is wrong with a restored copy, which must have all that
	// the tally from before its backup names.
	judge func(ctx context.Context, at place, before string) error
}

var databases = []*database{
	{
		name: "postgresql", image: bed.PostgreSQLImage, container: "postgresql", recipe: "postgresql", load: true,
		tally: tallyPostgreSQL, judge: judgePostgreSQL,
	},
	{
		name: "mariadb", image: bed.MariaDBImage, container: "mariadb", recipe: "mariadb", load: true,
		tally: tallyMariaDB, judge: judgeMariaDB,
	},
	{
		name: "redis", image: bed.RedisImage, container: "redis", recipe: "redis",
		tally: tallyRedis, judge: judgeRedis,
	},
}

// Databases are the names of all databases.
func Databases() []string {
	var names []string
	for _, d := range databases {
		names = append(names, d.name)
	}
	return names
}

func (o Options) databases() ([]*database, error) {
	var chosen []*database
	for _, name := range o.Databases {
		i := slices.IndexFunc(databases, func(d *database) bool { return d.name == name })
		if i < 0 {
			return nil, fmt.Errorf("no database %q; there are %s", name, strings.Join(Databases(), ", "))
		}
		chosen = append(chosen, databases[i])
	}
	return chosen, nil
}

const psql = `PGPASSWORD=$POSTGRES_PASSWORD exec psql --no-psqlrc --quiet --tuples-only --no-align --set=ON_ERROR_STOP=1 --username=postgres postgres`

// tallyPostgreSQL adds up all entries of the history that are older than the
// oldest transaction which is still open: that sum stays what it is.
func tallyPostgreSQL(ctx context.Context, at place) (string, error) {
	since, err := at.ask(ctx, psql, `SELECT (min(xact_start) - interval '100 ms')::timestamp FROM pg_stat_activity WHERE xact_start IS NOT NULL;`)
	if err != nil {
		return "", err
	}
	return addUpHistory(ctx, at, since)
}

func addUpHistory(ctx context.Context, at place, until string) (string, error) {
	sum, err := at.ask(ctx, psql, fmt.Sprintf(
		`SELECT count(*), coalesce(sum(hashtextextended(h::text, 0)::numeric), 0) FROM pgbench_history h WHERE mtime < '%s';`, until))
	return until + "|" + sum, err
}

func judgePostgreSQL(ctx context.Context, at place, before string) error {
	until, _, _ := strings.Cut(before, "|")
	now, err := addUpHistory(ctx, at, until)
	if err != nil {
		return err
	}
	if now != before {
		return fmt.Errorf("transactions are lost: the history up to that moment was %s (time, entries, sum), it is %s", before, now)
	}
	sums, err := at.ask(ctx, psql, `SELECT (SELECT sum(abalance) FROM pgbench_accounts), (SELECT sum(bbalance) FROM pgbench_branches),
		(SELECT sum(tbalance) FROM pgbench_tellers), (SELECT sum(delta) FROM pgbench_history);`)
	if err != nil {
		return err
	}
	if fields := strings.Split(sums, "|"); len(slices.Compact(fields)) != 1 {
		return fmt.Errorf("the sums of accounts, branches, tellers and history differ: %s", sums)
	}
	// Every table and index is read whole and held against the other.
	found, err := at.ask(ctx, `PGPASSWORD=$POSTGRES_PASSWORD exec pg_amcheck --install-missing --heapallindexed --rootdescend --username=postgres postgres`, "")
	if err != nil && found != "" { // what is corrupt, which it prints to standard output
		found, _, _ = strings.Cut(found, "\n")
		err = fmt.Errorf("%s: %w", found, err)
	}
	return err
}

const mariadb = `MYSQL_PWD=$MARIADB_ROOT_PASSWORD exec mariadb --user=root --batch --skip-column-names bank`

// recentTransfers is how many are looked for one by one.
const recentTransfers = 300

// tallyMariaDB names the last transfers.
func tallyMariaDB(ctx context.Context, at place) (string, error) {
	out, err := at.ask(ctx, mariadb, fmt.Sprintf(`SELECT id FROM transfer ORDER BY id DESC LIMIT %d;`, recentTransfers))
	return strings.Join(strings.Fields(out), ","), err
}

func judgeMariaDB(ctx context.Context, at place, before string) error {
	ids := strings.Count(before, ",") + 1
	out, err := at.ask(ctx, mariadb, fmt.Sprintf(`
		SELECT COUNT(*) FROM transfer WHERE id IN (%s);
		SELECT SUM(balance) - 1000 * COUNT(*) FROM account;
		SELECT COUNT(*) FROM account LEFT JOIN (SELECT payer, SUM(amount) AS paid FROM transfer GROUP BY payer) p ON payer = account.id
			LEFT JOIN (SELECT payee, SUM(amount) AS got FROM transfer GROUP BY payee) g ON payee = account.id
			WHERE balance <> 1000 - COALESCE(paid, 0) + COALESCE(got, 0);`, before))
	if err != nil {
		return err
	}
	if want := fmt.Sprintf("%d 0 0", ids); strings.Join(strings.Fields(out), " ") != want {
		return fmt.Errorf("of the %d last transfers before the backup, the surplus of all accounts, and accounts that do not fit their transfers there are %q, not %q", ids, strings.Fields(out), want)
	}
	tables, err := at.ask(ctx, mariadb, `CHECK TABLE account, transfer EXTENDED;`)
	if err != nil {
		return err
	}
	for line := range strings.Lines(tables) {
		if !strings.HasSuffix(strings.TrimSpace(line), "\tstatus\tOK") {
			return fmt.Errorf("CHECK TABLE: %s", tables)
		}
	}
	return nil
}

const redisCLI = `REDISCLI_AUTH=$REDIS_PASSWORD redis-cli GET counter`

func tallyRedis(ctx context.Context, at place) (string, error) { return at.ask(ctx, redisCLI, "") }

// judgeRedis holds the counter against the journal: what is written there was
// acknowledged, and one more increment may have been on its way.
func judgeRedis(ctx context.Context, at place, before string) error {
	out, err := at.ask(ctx, redisCLI+`; cat /log/journal /data/journal 2> /dev/null | tail -n 2; echo .`, "")
	if err != nil {
		return err
	}
	words := strings.Fields(out)
	if len(words) < 3 {
		return fmt.Errorf("there is no counter or no journal: %q", out)
	}
	counter, err := strconv.Atoi(words[0])
	if err != nil {
		return fmt.Errorf("the counter is not a number: %w", err)
	}
	acknowledged, err := strconv.Atoi(before)
	if err != nil {
		return err
	}
	if counter < acknowledged {
		return fmt.Errorf("the counter is %d; it was %d before the backup", counter, acknowledged)
	}
	// The last line may not be whole: then it is of a value that is one more.
	last := words[len(words)-2]
	if !strings.Contains(out, last+"\n.") {
		last = words[len(words)-3]
	}
	journal, err := strconv.Atoi(last)
	if err != nil {
		return fmt.Errorf("the journal's last entry is not a number: %w", err)
	}
	if counter < journal || counter > journal+1 {
		return fmt.Errorf("the counter is %d, and the last value in the journal is %d", counter, journal)
	}
	return nil
}
