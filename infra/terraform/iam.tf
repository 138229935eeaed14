# Five identities, each with the least it needs:
#   gpu        the instances: join the cluster, pull images
#   execution  ECS, on behalf of a starting run: pull its image, write its log, read the secrets it names
#   run        a run: the two buckets
#   mlflow     MLflow's server: its bucket
#   dispatcher the Prefect worker that starts runs: register and run tasks of this task family in this cluster
locals {
  ecs_arn = "arn:${data.aws_partition.current.partition}:ecs:${var.region}:${data.aws_caller_identity.current.account_id}"
}

data "aws_iam_policy_document" "assume" {
  for_each = {
    gpu        = "ec2.amazonaws.com"
    execution  = "ecs-tasks.amazonaws.com"
    run        = "ecs-tasks.amazonaws.com"
    mlflow     = "ecs-tasks.amazonaws.com"
    dispatcher = "ecs-tasks.amazonaws.com"
  }

  statement {
    actions = ["sts:AssumeRole"]

    principals {
      type        = "Service"
      identifiers = [each.value]
    }

    # Only ECS acting for this account may assume it, not another account's task that names our role.
    dynamic "condition" {
      for_each = each.value == "ecs-tasks.amazonaws.com" ? [1] : []

      content {
        test     = "StringEquals"
        variable = "aws:SourceAccount"
        values   = [data.aws_caller_identity.current.account_id]
      }
    }
  }
}

resource "aws_iam_role" "this" {
  for_each           = data.aws_iam_policy_document.assume
  name               = "${var.name}-${each.key}"
  assume_role_policy = each.value.json
}

resource "aws_iam_role_policy_attachment" "gpu" {
  role       = aws_iam_role.this["gpu"].name
  policy_arn = "arn:${data.aws_partition.current.partition}:iam::aws:policy/service-role/AmazonEC2ContainerServiceforEC2Role"
}

resource "aws_iam_instance_profile" "gpu" {
  name = "${var.name}-gpu"
  role = aws_iam_role.this["gpu"].name
}

data "aws_iam_policy_document" "execution" {
  statement {
    sid       = "SignInToTheRegistry"
    actions   = ["ecr:GetAuthorizationToken"]
    resources = ["*"] # this action allows nothing narrower
  }

  statement {
    sid       = "PullImages"
    actions   = ["ecr:BatchCheckLayerAvailability", "ecr:BatchGetImage", "ecr:GetDownloadUrlForLayer"]
    resources = [for repository in aws_ecr_repository.this : repository.arn]
  }

  statement {
    sid       = "WriteLogs"
    actions   = ["logs:CreateLogStream", "logs:PutLogEvents"]
    resources = ["${aws_cloudwatch_log_group.runs.arn}:*"]
  }

  dynamic "statement" {
    for_each = length(var.run_secret_arns) > 0 ? [1] : []

    content {
      sid       = "ReadSecretsOfRuns"
      actions   = ["secretsmanager:GetSecretValue"]
      resources = values(var.run_secret_arns)
    }
  }
}

data "aws_iam_policy_document" "buckets" {
  for_each = { run = ["dvc"], mlflow = ["mlflow"] }

  statement {
    sid       = "ListBuckets"
    actions   = ["s3:ListBucket", "s3:ListBucketMultipartUploads", "s3:GetBucketLocation"]
    resources = [for bucket in each.value : aws_s3_bucket.this[bucket].arn]
  }

  statement {
    sid = "ReadAndWriteObjects" # deleted and overwritten objects stay as versions, which none of these identities may delete
    actions = [
      "s3:GetObject",
      "s3:PutObject",
      "s3:DeleteObject",
      "s3:AbortMultipartUpload",
      "s3:ListMultipartUploadParts",
    ]
    resources = [for bucket in each.value : "${aws_s3_bucket.this[bucket].arn}/*"]
  }

  statement {
    sid       = "UseTheKeyThroughS3"
    actions   = ["kms:Decrypt", "kms:GenerateDataKey"]
    resources = [aws_kms_key.this.arn]

    condition {
      test     = "StringEquals"
      variable = "kms:ViaService"
      values   = ["s3.${var.region}.amazonaws.com"]
    }
  }
}

data "aws_iam_policy_document" "dispatcher" {
  statement {
    sid       = "DescribeTasksAndDefinitions"
    actions   = ["ecs:RegisterTaskDefinition", "ecs:DeregisterTaskDefinition", "ecs:DescribeTaskDefinition", "ecs:ListTaskDefinitions"]
    resources = ["*"] # these actions allow nothing narrower
  }

  statement {
    sid       = "RunTasksOfThisFamily"
    actions   = ["ecs:RunTask"]
    resources = ["${local.ecs_arn}:task-definition/${var.name}-run:*"]

    condition {
      test     = "ArnEquals"
      variable = "ecs:cluster"
      values   = [aws_ecs_cluster.this.arn]
    }
  }

  statement {
    sid       = "WatchAndStopTasks"
    actions   = ["ecs:DescribeTasks", "ecs:StopTask", "ecs:TagResource"]
    resources = ["${local.ecs_arn}:task/${var.name}/*", "${local.ecs_arn}:task-definition/${var.name}-run:*"]
  }

  statement {
    sid       = "FindSubnets"
    actions   = ["ec2:DescribeSubnets", "ec2:DescribeVpcs"]
    resources = ["*"] # these actions allow nothing narrower
  }

  statement {
    sid       = "HandRolesToRuns"
    actions   = ["iam:PassRole"]
    resources = [aws_iam_role.this["execution"].arn, aws_iam_role.this["run"].arn]

    condition {
      test     = "StringEquals"
      variable = "iam:PassedToService"
      values   = ["ecs-tasks.amazonaws.com"]
    }
  }
}

resource "aws_iam_role_policy" "this" {
  for_each = {
    execution  = data.aws_iam_policy_document.execution.json
    run        = data.aws_iam_policy_document.buckets["run"].json
    mlflow     = data.aws_iam_policy_document.buckets["mlflow"].json
    dispatcher = data.aws_iam_policy_document.dispatcher.json
  }

  name   = each.key
  role   = aws_iam_role.this[each.key].name
  policy = each.value
}
