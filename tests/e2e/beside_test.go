package e2e

import (
	"context"
	"fmt"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	velerov1 "github.com/vmware-tanzu/velero/pkg/apis/velero/v1"
	crclient "sigs.k8s.io/controller-runtime/pkg/client"

	"stillpoint.io/stillpoint/tests/cluster"
)

// testOfCluster is a test that others may run beside.
type testOfCluster struct {
	name string
	test func(*testing.T, *cluster.Cluster)
}

// besideEachOther are tests that mind nobody: what they make is in namespaces of
// their own or has names of its own; they make no kinds and kill nothing, they change
// neither Velero nor its configuration, and none of their limits is near to what a
// busy machine needs.
var besideEachOther = []testOfCluster{
	{"ExportLeavesNothing", testExportLeavesNothing},
	{"ExportOfVelerosSnapshot", testExportOfVelerosSnapshot},
	{"VolumeSnapshotDeletedDuringTheBackup", testVolumeSnapshotDeletedDuringTheBackup},
	{"RestoreBringsTheDataBack", testRestoreBringsTheDataBack},
	{"GroupMovesData", testGroupMovesData},
	{"KindsOfWorkloads", testKindsOfWorkloads},
	{"AnnotationOnAConfigMap", testAnnotationOnAConfigMap},
	{"BadInput", testBadInput},
	{"TaskPods", testTaskPods},
	{"AttacksOnAnotherNamespace", testAttacksOnAnotherNamespace},
	{"MongoDBLock", testMongoDBLock},
	{"ScaleWaitsForPodsToGo", testScaleWaitsForPodsToGo},
	{"EveryFunctionOfKanister", testEveryFunctionOfKanister},
	{"AnnotationOfNamespaceIsTheDefaultOfItsWorkloads", testAnnotationOfNamespaceIsTheDefaultOfItsWorkloads},
	{"PublishedLockOfAllPods", testPublishedLockOfAllPods},
	{"AnnotationOfClaimIsItsOwn", testAnnotationOfClaimIsItsOwn},
	{"PublishedHookOfAnOperator", testPublishedHookOfAnOperator},
	{"ScaleDown", testScaleDown},
	{"AttacksWhileABackupRuns", testAttacksWhileABackupRuns},
	{"WhatIsRestoredIsWhatWasThereAtTheFreeze", testWhatIsRestoredIsWhatWasThereAtTheFreeze},
	{"PublishedDownAndUp", testPublishedDownAndUp},
	{"ContinueSnapshotsAllTheSameAndWarns", testContinueSnapshotsAllTheSameAndWarns},
	{"PasswordIsInNoListOfProcesses", testPasswordIsInNoListOfProcesses},
	{"VolumesThatVeleroSkipsAreNeverFrozen", testVolumesThatVeleroSkipsAreNeverFrozen},
	{"ForeignVolumesAreNeverFrozen", testForeignVolumesAreNeverFrozen},
	{"BlueprintObject", testBlueprintObject},
	{"NoRunningPodMeansNothingToQuiesce", testNoRunningPodMeansNothingToQuiesce},
	{"ApplicationGoesBeforeItsFileSystem", testApplicationGoesBeforeItsFileSystem},
	{"AnnotationOnACustomResource", testAnnotationOnACustomResource},
	{"OneKindThatCannotBeRead", testOneKindThatCannotBeRead},
	{"SnapshotWithoutAFreezeIsAnError", testSnapshotWithoutAFreezeIsAnError},
	{"PreThatFailsHalfWay", testPreThatFailsHalfWay},
	{"GroupRefusals", testGroupRefusals},
	{"TwoPodsOnOneVolumeFreezeItOnce", testTwoPodsOnOneVolumeFreezeItOnce},
	{"ConfinedTasksHaveTheRightsOfTheirServiceAccount", testConfinedTasksHaveTheRightsOfTheirServiceAccount},
	{"VelerosHooks", testVelerosHooks},
	{"NothingIsFrozenWhenVeleroCannotSnapshot", testNothingIsFrozenWhenVeleroCannotSnapshot},
}

// faultsBesideEachOther are tests in which something fails, or is killed that none of
// the others needs. Some wait for more than a minute until somebody gives it up, and
// leave the machine to those that have to be quick. None minds that the first lets
// the plugin thaw on nodes at its end.
var faultsBesideEachOther = []testOfCluster{
	{"NoContainerIsLeft", testNoContainerIsLeft},
	{"NodeAgentIsKilledWhileItUploads", testNodeAgentIsKilledWhileItUploads},
	{"PodDeletedWhileFrozen", testPodDeletedWhileFrozen},
	{"ContainerKilledWhileFrozen", testContainerKilledWhileFrozen},
	{"ContainerKilledWhileAnotherMountsTheVolume", testContainerKilledWhileAnotherMountsTheVolume},
	{"SnapshotThatFailsThawsAtOnce", testSnapshotThatFailsThawsAtOnce},
	{"DeadlineMakesTheSnapshotAnError", testDeadlineMakesTheSnapshotAnError},
	{"GroupFails", testGroupFails},
	{"PreThatHangs", testPreThatHangs},
	{"FreezeThatCompletesAfterItsThaw", testFreezeThatCompletesAfterItsThaw},
	{"ThirdParties", testThirdParties},
	{"WorkloadsThatAreHardToQuiesce", testWorkloadsThatAreHardToQuiesce},
}

// Velero runs backups of different namespaces at the same time where its server
// has --concurrent-backups, and each has a process of our plugin.
func TestBesideEachOther(t *testing.T) {
	const backups = 3
	c := connect(t)
	serverFlags(t, c, concurrent(atOnce)) // and without them again, when the kinds have gone
	kanisterKind(t, c)
	databaseKind(t, c)
	gadgetKind(t, c)
	most := mostBackups(t, c)
	if runBesideEachOther(t, c, besideEachOther) == len(besideEachOther) {
		assert.GreaterOrEqual(t, most(), backups, "so many were to be in progress at once")
	}
}

// None of them waits for another, since each has its freeze within a time.
func TestFaultsBesideEachOther(t *testing.T) {
	c := connect(t)
	serverFlags(t, c, concurrent(len(faultsBesideEachOther)))
	runBesideEachOther(t, c, faultsBesideEachOther)
}

// concurrent lets so many backups run at once. It is not to be fewer than are asked
// for at once: of those that are queued, Velero 1.18 starts some twice. Its queue can
// see one as queued that has begun, and then the second start fails, since the backup
// "already exists in object storage".
func concurrent(backups int) string { return fmt.Sprintf("--concurrent-backups=%d", backups) }

// runBesideEachOther returns how many of the tests were asked for.
func runBesideEachOther(t *testing.T, c *cluster.Cluster, tests []testOfCluster) int {
	t.Helper()
	var ran atomic.Int32
	t.Run("all", func(t *testing.T) {
		for _, one := range tests {
			t.Run(one.name, func(t *testing.T) {
				t.Parallel()
				ran.Add(1)
				one.test(t, c)
			})
		}
	})
	return int(ran.Load())
}

// mostBackups counts how many backups are in progress at once, until it is asked.
func mostBackups(t *testing.T, c *cluster.Cluster) func() int {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	found := make(chan int, 1)
	go func() {
		most := 0
		for ctx.Err() == nil {
			list := &velerov1.BackupList{}
			if c.Objects().List(ctx, list, crclient.InNamespace(cluster.VeleroNamespace)) == nil {
				now := 0
				for i := range list.Items {
					if list.Items[i].Status.Phase == velerov1.BackupPhaseInProgress {
						now++
					}
				}
				most = max(most, now)
			}
			time.Sleep(500 * time.Millisecond)
		}
		found <- most
	}()
	return func() int {
		cancel()
		return <-found
	}
}
